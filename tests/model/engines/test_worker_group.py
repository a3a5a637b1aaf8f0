"""However a rank ends, the whole replica ends soon, says why, and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import ExitCode

ROOT = Path(__file__).parents[3]
WORK = """
import sys
from itertools import count
from pathlib import Path
from pipeline.model.engines.torch import worker_group
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engine_thread import generate_replies
from tests.model.engines.conftest import Lab

worker_group.FAILURE_GRACE_S = 1
lab = Lab(Path(sys.argv[1]), "qwen3_vl")
hang_s = 3 if sys.argv[2] == "stopped" else 300
engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=2, kv_tokens=300, tensor_parallel=2, hang_s=hang_s)
print(engine.vision_cache.collectives.worker_group.processes[0].pid, flush=True)
if sys.argv[2] == "alone":
    run_step, calls = engine.step_runner.run_step, count()
    def failing(step, *feed):
        if next(calls) > 3:
            raise RuntimeError("only here")
        return run_step(step, *feed)
    engine.step_runner.run_step = failing
for answer in generate_replies(engine, (lab.ask(str(number), "hello") for number in count())):
    print(answer.id, flush=True)
"""


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """One for each way to end, started together: starting is what takes long."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    made = {}
    for way in ("killed", "stopped", "alone", "first"):
        folder = tmp_path_factory.mktemp(way)
        command = [sys.executable, "-c", WORK, str(folder / "model"), way]
        error = (folder / "error").open("w+")
        made[way] = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=error, text=True), error
    yield made
    for process, error in made.values():
        process.kill()
        process.wait()
        process.stdout.close()
        error.close()


def end_of(replicas, way, signal_number=None, *, of_first=False):
    """The exit code and what was said, after a rank was sent a signal in mid-work."""
    process, error = replicas[way]
    other = int(process.stdout.readline())
    if signal_number:
        assert process.stdout.readline()  # an answer: both are at work
        os.kill(process.pid if of_first else other, signal_number)
    for _ in process.stdout:
        pass
    code = process.wait(60)
    ends = time.monotonic() + 20
    while psutil.pid_exists(other) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not psutil.pid_exists(other)
    error.seek(0)
    return code, error.read()


def test_a_killed_rank_ends_the_replica(replicas):
    code, said = end_of(replicas, "killed", signal.SIGKILL)
    assert code == ExitCode.HANG
    assert "rank 1 ended (killed by signal 9); ending the replica" in said


def test_a_rank_that_hangs_ends_the_replica_within_its_limit(replicas):
    code, said = end_of(replicas, "stopped", signal.SIGSTOP)
    assert code == ExitCode.HANG
    assert "a step of the engine took more than 3 s" in said


def test_a_failure_of_one_rank_alone_ends_the_replica(replicas):
    code, said = end_of(replicas, "alone")
    assert code == ExitCode.HANG
    assert "only here" in said


def test_the_end_of_the_first_rank_is_the_end_of_the_others(replicas):
    code, _ = end_of(replicas, "first", signal.SIGKILL, of_first=True)
    assert code == -signal.SIGKILL
