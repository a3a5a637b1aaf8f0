"""Taking turns inside a process, and what is read of one that died."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from pipeline.cluster.crash_ledger import StepInstructions
from pipeline.cluster.isolation import SharedExclusiveLock, raise_if_refused, read_crash_line
from pipeline.cluster.workers import compute_row_timeout_s
from pipeline.errors import StoppedError
from pipeline.job.spec import Job

FAULT = """:actor_name:MapWorker(MapBatches(Generate))
*** SIGSEGV received at time=1795247700 on cpu 0 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "x.py", line 1 in reply
"""


def test_who_is_alone_waits_for_those_who_share_and_newcomers_wait_for_the_one_who_waits():
    turns, inside, leave, order = SharedExclusiveLock(), Event(), Event(), []

    def share(name, held=None):
        with turns.hold_shared():
            order.append(name)
            inside.set()
            if held:
                held.wait(20)

    def be_alone():
        with turns.hold_exclusive():
            order.append("alone")

    first, alone = Thread(target=share, args=("first", leave)), Thread(target=be_alone)
    first.start()
    inside.wait(20)
    alone.start()
    while not turns.exclusive_waiting:
        pass
    newcomer = Thread(target=share, args=("newcomer",))
    newcomer.start()
    newcomer.join(0.2)
    assert order == ["first"]
    leave.set()
    for each in (first, alone, newcomer):
        each.join(20)
    assert order == ["first", "alone", "newcomer"]


def test_many_may_share(tmp_path):
    turns = SharedExclusiveLock()
    with turns.hold_shared(), turns.hold_shared():
        assert turns.shared_count == 2
    with turns.hold_exclusive():
        assert turns.shared_count == 0


def test_the_last_words_are_the_line_that_says_why(tmp_path):
    log = tmp_path / "worker.err"
    log.write_text(FAULT)
    assert read_crash_line(str(log)) == "Fatal Python error: Segmentation fault"
    log.write_text(FAULT + "vlbatch: a step of the engine took more than 600 s; ending\n")
    assert read_crash_line(str(log)) == "a step of the engine took more than 600 s; ending"


def test_who_was_killed_said_nothing(tmp_path):
    (tmp_path / "worker.err").write_text(":job_id:01000000\n")
    assert read_crash_line(str(tmp_path / "worker.err")) == ""
    assert read_crash_line(str(tmp_path / "never.err")) == ""


def test_a_row_is_given_the_time_that_the_frames_of_its_videos_add_before_its_process_is_ended():
    said = {"name": "t", "input": {"manifest": "m", "media": ["a", "b"]}, "model": {"weights": "w"}}
    job = Job.model_validate({**said, "limits": {"deadline_s": 100}, "output": {"path": "o"}})
    assert compute_row_timeout_s(job) == 100 + 2 * 768 / 4


def test_a_refusal_for_which_no_process_stands_says_nothing_of_its_last_words():
    with pytest.raises(StoppedError, match=r"^stopped: it is not the rows$"):
        raise_if_refused(StepInstructions(stop_reason="it is not the rows"))
