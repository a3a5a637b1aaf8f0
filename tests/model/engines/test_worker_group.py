"""When a rank ends in any way, the whole replica ends soon, says why, and leaves no process."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import ExitCode
from tests.forked_python import ForkedPopen
from tests.model.engines.failing_replica import open_engine

pytestmark = pytest.mark.process

MODEL_TYPE = "qwen3_vl"


class ForkedReplica(ForkedPopen):
    """Its ranks are no forks: they start as those of a run."""

    modules = (
        "tests.model.engines.conftest",
        "pipeline.model.engines.torch.engine",
        f"transformers.models.{MODEL_TYPE}.modeling_{MODEL_TYPE}",
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", MODEL_TYPE)


@pytest.fixture
def start(checkpoint, tmp_path):
    """A function that starts a replica which ends in this way. Returns the process and its error output."""
    started = []
    (tmp_path / "model").symlink_to(checkpoint)

    def start_failing(way):
        error = (tmp_path / "error").open("w+")
        command = [sys.executable, "-m", "tests.model.engines.failing_replica", str(tmp_path), way]
        started.append((ForkedReplica(command, stdout=subprocess.PIPE, stderr=error, text=True), error))
        return started[-1]

    yield start_failing
    for process, error in started:
        process.kill()
        process.wait()
        process.stdout.close()
        error.close()


def end_replica(process, error, signal_number=None, *, of_first=False):
    """Send a signal to a rank at work. Returns the exit code and the error output of rank 0."""
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


def test_a_killed_rank_ends_the_replica(start):
    code, error_output = end_replica(*start("killed"), signal.SIGKILL)
    assert code == ExitCode.HANG
    assert "rank 1 ended (killed by signal 9); ending the replica" in error_output


def test_a_rank_that_hangs_ends_the_replica_within_its_limit(start):
    code, error_output = end_replica(*start("stopped"), signal.SIGSTOP)
    assert code == ExitCode.HANG
    assert "a step of the engine took more than 3 s" in error_output


@pytest.mark.slow
def test_a_failure_of_one_rank_ends_the_replica(start):
    code, error_output = end_replica(*start("alone"))
    assert code == ExitCode.HANG
    assert "only here" in error_output


@pytest.mark.slow
def test_the_other_ranks_end_with_the_first(start):
    code, _ = end_replica(*start("first"), signal.SIGKILL, of_first=True)
    assert code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("way", "reason"), [("memory", "rank 0 failed"), ("memory-of-another", "out of memory")])
def test_the_process_after_an_out_of_memory_begins_with_lower_limits(start, tmp_path, monkeypatch, way, reason):
    code, error_output = end_replica(*start(way))
    assert code == ExitCode.HANG
    assert reason in error_output
    (limits_file,) = tmp_path.glob("vlbatch-limits-*")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getppid", os.getpid)  # the parent of the replica
    engine = open_engine(tmp_path / "model")
    limits = engine.limits
    assert (limits.prefill_tokens, limits.patches, limits.max_sequences) == (2048, 4096, 1)
    engine.close()
    assert not limits_file.exists(), "a replica has ended well"
