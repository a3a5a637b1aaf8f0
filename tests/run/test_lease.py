"""One run at a time, and a second that knows whom it waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import StoppedError
from pipeline.job.spec import Job
from pipeline.output.store import OutputStore
from pipeline.run import driver, lease
from pipeline.run.lease import Lease, raise_if_taken_over, read_newest_holder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    return OutputStore(str(tmp_path / "out"))


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="leases")
    yield OutputStore("s3://leases/out")
    server.stop()


def opened(store, run, said=None, **more):
    return Lease(store, "f", run, say=(said if said is not None else []).append, **more)


def elsewhere(store, *, patience_s):
    """A lease as another machine holds it."""
    held = opened(store, "theirs")
    held.holder_record |= {"host": "far", "machine": "far", "patience_s": patience_s}
    held.try_claim()
    return held


def test_a_second_run_waits_for_the_first_and_is_told_who_it_is(store):
    said, order = [], []

    def second():
        with opened(store, "two", said):
            order.append("two")

    with opened(store, "one"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not said:
            time.sleep(0.01)
        order.append("one")
    waiting.join()
    assert order == ["one", "two"]
    assert "run one on " in said[0]
    assert "at work since " in said[0]
    assert "--take-over" in said[0]


def test_in_a_bucket_too_one_at_a_time_is_at_work_and_a_silent_holder_is_replaced(bucket):
    test_of_many_that_start_at_once_one_at_a_time_is_at_work(bucket)
    elsewhere(bucket, patience_s=0.5)
    said = []
    with opened(bucket, "late", said) as late:
        assert late.epoch == 10
        assert read_newest_holder(bucket, "f").run == "late"
    assert "no sign of life for 0.5 s" in said[1]


def test_a_run_that_ended_leaves_the_way_free(store):
    with opened(store, "one") as first:
        assert read_newest_holder(store, "f").held
    assert not read_newest_holder(store, "f").held
    said = []
    with opened(store, "two", said) as second:
        assert (first.epoch, second.epoch) == (1, 2)
    assert said == []


def test_a_holder_that_died_on_this_machine_is_not_waited_for(store):
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, os; from pipeline.output.store import Store; from pipeline.run.lease import Lease\n"
            f"Lease(Store({store.path!r}), 'f', 'dead', say=print).__enter__(); os._exit(9)",
        ],
        check=False,
    )
    assert child.returncode == 9
    with opened(store, "two") as second:
        assert second.epoch == 2


def test_a_clock_that_is_set_while_a_run_works_makes_it_no_dead_one(store, monkeypatch):
    with opened(store, "one"):
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1_000_000_000.0)  # as Linux then says
        assert read_newest_holder(store, "f").held


def test_of_machines_of_one_name_the_processes_are_told_apart(store, monkeypatch, tmp_path):
    dead = opened(store, "one")
    dead.holder_record["process"] = 2**22 + 1  # a number that no process has
    dead.try_claim()
    assert not read_newest_holder(store, "f").held
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(lease, "BOOT", tmp_path / "boot_id")
    assert read_newest_holder(store, "f").held


def test_a_holder_elsewhere_without_a_sign_of_life_is_replaced_after_its_own_patience(store):
    elsewhere(store, patience_s=0.3)
    said = []
    with opened(store, "two", said) as second:
        assert second.epoch == 2
    assert "run theirs on far" in said[0]
    assert "no sign of life for 0.3 s" in said[1]


def test_of_a_holder_that_was_killed_elsewhere_it_is_said_when_it_was_seen_last(store):
    held = elsewhere(store, patience_s=0.3)
    os.utime(f"{store.root}/{held.folder}/00000001.beat", (0, 1_800_000_000))
    assert (read_newest_holder(store, "f").held, read_newest_holder(store, "f").seen) == (
        True,
        "2027-01-15 08:00:00 UTC",
    )


def test_a_holder_elsewhere_that_beats_is_waited_for(store):
    held = elsewhere(store, patience_s=0.3)
    entered = threading.Event()

    def second():
        with opened(store, "two"):
            entered.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    for _ in range(20):
        held.write_heartbeat("held")
        assert not entered.wait(0.05)
    held.write_heartbeat("over")
    waiting.join()
    assert entered.is_set()


def test_who_is_taken_over_notices_and_cannot_commit(store, monkeypatch):
    monkeypatch.setenv("VLBATCH_LEASE_S", "0.3")
    with opened(store, "one") as first:
        raise_if_taken_over(store, "f", first.epoch)
        with opened(store, "two", take_over=True) as second:
            with pytest.raises(StoppedError, match="another run has taken over"):
                raise_if_taken_over(store, "f", first.epoch)
            raise_if_taken_over(store, "f", second.epoch)
            while not first.taken_over_by:
                time.sleep(0.01)
            with pytest.raises(StoppedError, match="run two has taken over"):
                first.raise_if_taken_over()
            second.raise_if_taken_over()
    assert not read_newest_holder(store, "f").held


def test_of_many_that_start_at_once_one_at_a_time_is_at_work(store):
    at_work, most = [], []

    def one(number):
        with opened(store, f"r{number}"):
            at_work.append(number)
            most.append(len(at_work))
            time.sleep(0.02)
            at_work.remove(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == [1] * 8


def test_what_a_killed_runs_workers_were_writing_is_seen_by_the_next_however_it_cuts_the_manifest(
    workspace, monkeypatch
):
    workspace.write_manifest(workspace.draw_images(4))
    create, began = OutputStore.create_object, threading.Event()

    def slow(store, name, data):
        if name.startswith("data/") and not began.is_set():  # of the first run: asked whether it may, and at it
            began.set()
            time.sleep(1)
        return create(store, name, data)

    monkeypatch.setattr(OutputStore, "create", slow)

    def run():
        with suppress(StoppedError):  # where it notices before it has ended
            workspace.run_job(output={"chunk_rows": 4})

    first = threading.Thread(target=run)
    monkeypatch.setattr(driver, "Signals", lambda say: nullcontext(Calm()))
    first.start()
    began.wait()
    job = Job.model_validate(workspace.build_job(output={"chunk_rows": 3}))
    assert driver.run_job(job, driver.RunOptions(in_process=True, take_over=True), say=lambda line: None) == 0
    first.join()
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3"]


class Calm:
    """Signals, in a thread."""

    def grace(self):
        return nullcontext(threading.Event())


def test_another_question_in_the_same_output_has_a_lease_of_its_own(store):
    with opened(store, "one"), Lease(store, "g", "two", say=pytest.fail) as other:
        assert other.epoch == 1


def test_a_run_that_slept_while_another_took_over_changes_nothing_when_it_wakes(workspace):
    workspace.write_manifest(workspace.draw_images(24))
    slow = {"kind": "scripted", "default": "seen {id}", "slots": 1, "delay_ms": 60}
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=slow)), "--local"]
    env = {**os.environ, "VLBATCH_LEASE_S": "1"}
    sleeper = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while not workspace.list_parts():
            assert sleeper.poll() is None
            time.sleep(0.02)
        sleeper.send_signal(signal.SIGSTOP)
        before = workspace.list_parts()
        successor = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        after = workspace.list_parts()
    finally:
        sleeper.send_signal(signal.SIGCONT)
        _, words = sleeper.communicate(timeout=120)
    assert "no sign of life for 1 s; going on in its place" in successor.stderr
    assert sleeper.returncode == 4
    assert "taken over" in words
    assert before.items() <= after.items() == workspace.list_parts().items()
    assert workspace.list_answered_ids() == sorted(f"r{n}" for n in range(24))
