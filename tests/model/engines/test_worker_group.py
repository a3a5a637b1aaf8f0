"""When a rank ends in any way, the whole replica ends soon, says why, and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.errors import ExitCode

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from itertools import count
from pathlib import Path
import torch
from pipeline.model.engines.torch import worker_group
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engine_thread import generate_replies
from tests.model.engines.conftest import Lab

worker_group.FAILURE_GRACE_S = 1
lab = Lab(Path(sys.argv[1]), "qwen3_vl")
if sys.argv[2] == "memory-of-another":
    worker_group.WORKER_MODULE = "tests.model.engines.rank_without_memory"
hang_s = 3 if sys.argv[2] == "stopped" else 300
engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=2, kv_tokens=300, tensor_parallel=2, hang_s=hang_s)
print(engine.vision_cache.collectives.worker_group.processes[0].pid, flush=True)
if sys.argv[2] == "again":
    print(engine.limits.prefill_tokens, engine.limits.patches, engine.limits.max_sequences, flush=True)
    engine.close()
    sys.exit()
if sys.argv[2] in ("alone", "memory"):
    run_step, calls = engine.step_runner.run_step, count()
    error = RuntimeError("only here") if sys.argv[2] == "alone" else torch.OutOfMemoryError("CUDA out of memory")
    def failing(*arguments):
        if next(calls) > 3:
            raise error
        return run_step(*arguments)
    engine.step_runner.run_step = failing
for answer in generate_replies(engine, (lab.build_request(str(number), "hello") for number in count())):
    print(answer.id, flush=True)
"""


def start_replica(folder: Path, way: str, **options) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [sys.executable, "-c", SCRIPT, str(folder / "model"), way]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, **options)


@contextmanager
def start_replicas(tmp_path_factory, ways):
    """One replica for each way to end. They start at the same time, because starting takes long."""
    processes = {}
    for way in ways:
        folder = tmp_path_factory.mktemp(way)
        error = (folder / "error").open("w+")
        processes[way] = start_replica(folder, way, stderr=error), error
    yield processes
    for process, error in processes.values():
        process.kill()
        process.wait()
        process.stdout.close()
        error.close()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    with start_replicas(tmp_path_factory, ("killed", "stopped")) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def more_replicas(tmp_path_factory):
    with start_replicas(tmp_path_factory, ("alone", "first")) as replicas:
        yield replicas


def end_replica(replicas, way, signal_number=None, *, of_first=False):
    """Send a signal to a rank at work. Returns the exit code and the error output of rank 0."""
    process, error = replicas[way]
    worker_pid = int(process.stdout.readline())
    if signal_number:
        assert process.stdout.readline()  # an answer: both ranks are at work
        os.kill(process.pid if of_first else worker_pid, signal_number)
    for _ in process.stdout:
        pass
    code = process.wait(60)
    ends = time.monotonic() + 20
    while psutil.pid_exists(worker_pid) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker_pid)
    error.seek(0)
    return code, error.read()


def test_a_killed_rank_ends_the_replica(replicas):
    code, error_output = end_replica(replicas, "killed", signal.SIGKILL)
    assert code == ExitCode.HANG
    assert "rank 1 ended (killed by signal 9); ending the replica" in error_output


def test_a_rank_that_hangs_ends_the_replica_within_its_limit(replicas):
    code, error_output = end_replica(replicas, "stopped", signal.SIGSTOP)
    assert code == ExitCode.HANG
    assert "a step of the engine took more than 3 s" in error_output


@pytest.mark.slow
def test_a_failure_of_one_rank_ends_the_replica(more_replicas):
    code, error_output = end_replica(more_replicas, "alone")
    assert code == ExitCode.HANG
    assert "only here" in error_output


@pytest.mark.slow
def test_the_other_ranks_end_with_the_first(more_replicas):
    code, _ = end_replica(more_replicas, "first", signal.SIGKILL, of_first=True)
    assert code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("way", "reason"), [("memory", "rank 0 failed"), ("memory-of-another", "out of memory")])
def test_the_process_after_an_out_of_memory_begins_with_lower_limits(tmp_path_factory, way, reason):
    with start_replicas(tmp_path_factory, [way]) as replicas:
        code, error_output = end_replica(replicas, way)
        folder = Path(replicas[way][1].name).parent
    assert code == ExitCode.HANG
    assert reason in error_output
    for limits in ("2048 4096 1", "4096 8192 2"):  # the file is gone when a replica has ended well
        with start_replica(folder, "again") as process:
            assert process.communicate(timeout=120)[0].splitlines()[1] == limits
