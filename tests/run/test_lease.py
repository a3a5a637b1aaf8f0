"""The lease: one run at a time works on a question of an output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import replace

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import StoppedError
from pipeline.job.spec import Job
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import claims, driver, lease
from pipeline.run.claims import read_newest_holder
from pipeline.run.lease import Lease, raise_if_taken_over
from tests.run.leases import TIMEOUT_S, WaitingRun, claim_on_another_machine, open_lease

pytestmark = pytest.mark.process


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "POLL_INTERVAL_S", 0.05)
    return Dataset(OutputStore(str(tmp_path / "out")), "f")


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(lease, "POLL_INTERVAL_S", 0.05)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="leases")
    yield Dataset(OutputStore("s3://leases/out"), "f")
    server.stop()


def test_a_second_run_waits_for_the_first_and_says_for_whom(dataset):
    with open_lease(dataset, "one"):
        second = WaitingRun(dataset, "two")
        announcement = second.read_announcement()
        assert not second.ended.is_set()
    assert second.read_epoch() == 2
    assert "run one on " in announcement
    assert "running since " in announcement
    assert "--take-over" in announcement


def test_a_lease_in_a_bucket_has_one_holder_and_a_silent_one_is_replaced(bucket):
    assert hold_at_once(bucket, 3) == [1, 1, 1]
    claim_on_another_machine(bucket, "theirs", timeout_s=0.5)
    messages = []
    with open_lease(bucket, "late", messages=messages) as late:
        assert late.epoch == 5
        assert read_newest_holder(bucket).run == "late"
    assert "no sign of life for 0.5 s" in messages[1]


def test_runs_on_shards_share_an_epoch_in_a_bucket_unless_they_fell_silent(bucket):
    """Its times are whole seconds."""
    with open_lease(bucket, "one", (1, 2)) as one, open_lease(bucket, "two", (2, 2)) as two:
        assert one.epoch == two.epoch
    silent = claim_on_another_machine(bucket, "silent", (1, 2), timeout_s=0.1)
    time.sleep(3.0)
    with open_lease(bucket, "next", (2, 2)) as following:
        assert one.epoch + 2 == silent.epoch + 1 == following.epoch


def test_a_run_that_ended_has_released_its_lease(dataset):
    with open_lease(dataset, "one") as first:
        assert read_newest_holder(dataset).held
    assert not read_newest_holder(dataset).held
    with open_lease(dataset, "two") as second:
        assert (first.epoch, second.epoch) == (1, 2)


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(dataset):
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from pipeline.output.dataset import Dataset; from pipeline.output.store import OutputStore\n"
            "from pipeline.run.lease import Lease\n"
            f"dataset = Dataset(OutputStore({dataset.store.path!r}), 'f')\n"
            "Lease(dataset, 'dead', say=print).__enter__(); os._exit(9)",
        ],
        check=False,
    )
    assert child.returncode == 9
    with open_lease(dataset, "two") as second:
        assert second.epoch == 2


def test_setting_the_clock_does_not_make_a_running_holder_look_dead(dataset, monkeypatch):
    with open_lease(dataset, "one"):
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1_000_000_000.0)  # what Linux then reports
        assert read_newest_holder(dataset).held


def test_processes_of_two_machines_with_the_same_name_are_told_apart(dataset, monkeypatch, tmp_path):
    dead = open_lease(dataset, "one")
    dead.holder_record["process"] = 2**22 + 1  # no process has this number
    dead.try_claim()
    assert not read_newest_holder(dataset).held
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(claims, "BOOT_ID_FILE", tmp_path / "boot_id")
    assert read_newest_holder(dataset).held


def test_a_silent_holder_on_another_machine_is_replaced_after_its_own_timeout(dataset):
    claim_on_another_machine(dataset, "theirs", timeout_s=0.3)
    messages = []
    with open_lease(dataset, "two", messages=messages) as second:
        assert second.epoch == 2
    assert "run theirs on far" in messages[0]
    assert "no sign of life for 0.3 s" in messages[1]


def test_the_last_heartbeat_of_a_killed_holder_is_reported(dataset):
    held = claim_on_another_machine(dataset, "theirs", timeout_s=0.3)
    os.utime(f"{dataset.store.root}/{held.claims.folder}/00000001.beat", (0, 1_800_000_000))
    assert (read_newest_holder(dataset).held, read_newest_holder(dataset).seen) == (
        True,
        "2027-01-15 08:00:00 UTC",
    )


def test_a_holder_on_another_machine_that_sends_heartbeats_is_waited_for(dataset):
    held = claim_on_another_machine(dataset, "theirs", timeout_s=0.3)
    second = WaitingRun(dataset, "two")
    for _ in range(20):
        held.write_heartbeat("held")
        assert not second.ended.wait(0.05)
    held.write_heartbeat("over")
    assert second.read_epoch() == 2


def test_a_run_that_was_taken_over_notices_and_cannot_commit(dataset, monkeypatch):
    monkeypatch.setenv("VLBATCH_LEASE_S", "0.3")
    with open_lease(dataset, "one") as first:
        raise_if_taken_over(dataset, first.epoch)
        with open_lease(dataset, "two", take_over=True) as second:
            with pytest.raises(StoppedError, match="another run has taken over"):
                raise_if_taken_over(dataset, first.epoch)
            raise_if_taken_over(dataset, second.epoch)
            assert first.ended.wait(TIMEOUT_S)
            with pytest.raises(StoppedError, match="run two has taken over"):
                first.raise_if_taken_over()
            second.raise_if_taken_over()
    assert not read_newest_holder(dataset).held


def hold_at_once(dataset, runs):
    """How many runs held the lease whenever one of them got it."""
    holders, holder_counts = [], []

    def hold(number):
        with open_lease(dataset, f"r{number}", messages=[]):
            holders.append(number)
            holder_counts.append(len(holders))
            time.sleep(0.02)
            holders.remove(number)

    threads = [threading.Thread(target=hold, args=(number,), daemon=True) for number in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return holder_counts


def test_runs_that_start_at_once_hold_the_lease_one_at_a_time(dataset):
    assert hold_at_once(dataset, 8) == [1] * 8


def test_a_late_commit_of_a_killed_run_is_seen_by_the_next_run_with_other_chunks(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(4))
    create, began = OutputStore.create_object, threading.Event()

    def create_slowly(store, name, data, *check):
        if name.startswith("data/") and not began.is_set():  # the first run, after its last check of the lease
            began.set()
            time.sleep(1)
        return create(store, name, data, *check)

    monkeypatch.setattr(OutputStore, "create_object", create_slowly)

    def run():
        with suppress(StoppedError):  # it may notice the takeover
            workspace.run_job(output={"chunk_rows": 4})

    first = threading.Thread(target=run)
    monkeypatch.setattr(driver, "StopSignals", lambda say: nullcontext(NoSignals()))
    first.start()
    began.wait()
    job = Job.model_validate(workspace.build_job(output={"chunk_rows": 3}))
    assert driver.run_job(job, driver.RunOptions(runner="local", take_over=True), say=lambda line: None) == 0
    first.join()
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3"]


class NoSignals:
    """StopSignals for a run in a thread, which cannot handle signals."""

    def stop_gracefully(self):
        return nullcontext(threading.Event())


def test_another_question_in_the_same_output_has_a_lease_of_its_own(dataset):
    with open_lease(dataset, "one"), Lease(replace(dataset, fingerprint="g"), "two", say=pytest.fail) as other:
        assert other.epoch == 1


def test_a_suspended_run_that_was_taken_over_changes_nothing_when_it_wakes(workspace):
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
        _, stderr = sleeper.communicate(timeout=120)
    assert "no sign of life for 1 s; this run takes its place" in successor.stderr
    assert sleeper.returncode == 4
    assert "taken over" in stderr
    assert before.items() <= after.items() == workspace.list_parts().items()
    assert workspace.list_answered_ids() == sorted(f"r{n}" for n in range(24))


def test_a_commit_asks_for_one_object_and_lists_nothing(bucket, monkeypatch):
    """A store takes twelve times as much for a listing."""
    with open_lease(bucket, "first") as first:
        worker = Dataset(OutputStore("s3://leases/out"), "f")
        assert worker.lease_folder == bucket.lease_folder  # found once, at the start
        monkeypatch.setattr(worker.store.filesystem, "find", None)
        monkeypatch.setattr(worker.store.filesystem, "info", None)
        raise_if_taken_over(worker, first.epoch)
        with open_lease(bucket, "second", take_over=True), pytest.raises(StoppedError, match="has taken over"):
            raise_if_taken_over(worker, first.epoch)


def test_leases_of_last_month_are_deleted(dataset):
    folder = dataset.store.root + "/" + dataset.lease_folder
    for run_id in ("old", "recent"):
        with open_lease(dataset, run_id):
            pass
    for ending in ("json", "beat"):
        os.utime(f"{folder}/00000001.{ending}", (time.time() - 31 * 86400,) * 2)
        os.utime(f"{folder}/00000002.{ending}", (time.time() - 29 * 86400,) * 2)
    with open_lease(dataset, "now") as now:
        assert now.epoch == 3
        assert sorted(os.listdir(folder)) == [f"0000000{epoch}.{end}" for epoch in (2, 3) for end in ("beat", "json")]
