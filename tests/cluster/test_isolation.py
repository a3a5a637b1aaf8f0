"""The lock inside a worker process, and the last words of one that died."""

from __future__ import annotations

import signal
import subprocess
import sys
from threading import Event, Thread

import pytest

from pipeline.cluster.crash_ledger import StepInstructions
from pipeline.cluster.isolation import SharedExclusiveLock, raise_if_refused, read_crash_line
from pipeline.cluster.late_preparation import compute_row_timeout_s
from pipeline.errors import StoppedError
from pipeline.job.spec import Job

FAULT = """:actor_name:GenerateWorker
*** SIGSEGV received at time=1795247700 on cpu 0 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "x.py", line 1 in reply
"""


def test_an_exclusive_holder_waits_for_the_others_and_newcomers_wait_for_it():
    lock, inside, leave, order = SharedExclusiveLock(), Event(), Event(), []

    def share(name, held=None):
        with lock.hold_shared():
            order.append(name)
            inside.set()
            if held:
                held.wait(20)

    def be_alone():
        with lock.hold_exclusive():
            order.append("alone")

    first, alone = Thread(target=share, args=("first", leave)), Thread(target=be_alone)
    first.start()
    inside.wait(20)
    alone.start()
    while not lock.exclusive_waiting:
        pass
    newcomer = Thread(target=share, args=("newcomer",))
    newcomer.start()
    newcomer.join(0.2)
    assert order == ["first"]
    leave.set()
    for thread in (first, alone, newcomer):
        thread.join(20)
    assert order == ["first", "alone", "newcomer"]


def test_several_threads_share_the_lock(tmp_path):
    lock = SharedExclusiveLock()
    with lock.hold_shared(), lock.hold_shared():
        assert lock.shared_count == 2
    with lock.hold_exclusive():
        assert lock.shared_count == 0


def test_the_last_words_are_the_line_that_says_why(tmp_path):
    log = tmp_path / "worker.err"
    log.write_text(FAULT)
    assert read_crash_line(str(log)) == "Fatal Python error: Segmentation fault"
    log.write_text(FAULT + "vlbatch: a step of the engine took more than 600 s; ending\n")
    assert read_crash_line(str(log)) == "a step of the engine took more than 600 s; ending"


def test_a_killed_process_has_no_last_words(tmp_path):
    (tmp_path / "worker.err").write_text(":job_id:01000000\n")
    assert read_crash_line(str(tmp_path / "worker.err")) == ""
    assert read_crash_line(str(tmp_path / "never.err")) == ""


def test_the_row_timeout_grows_with_the_frames_of_its_videos():
    values = {"name": "t", "input": {"manifest": "m", "media": ["a", "b"]}, "model": {"weights": "w"}}
    job = Job.model_validate({**values, "limits": {"deadline_s": 100}, "output": {"path": "o"}})
    assert compute_row_timeout_s(job) == 100 + 2 * 768 / 4


def test_a_refusal_without_a_process_has_no_last_words():
    with pytest.raises(StoppedError, match=r"^stopped: the cause is not a row$"):
        raise_if_refused(StepInstructions(stop_reason="the cause is not a row"))


@pytest.mark.process
def test_a_process_whose_exit_hangs_is_ended_by_the_kernel():
    program = """
import atexit, time
from pipeline.cluster.isolation import limit_exit_time
atexit.register(time.sleep, 600)  # what is registered first runs last
limit_exit_time(1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=300).returncode == -signal.SIGALRM
