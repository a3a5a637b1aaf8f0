"""Lets one run at a time work on an output for one question. A second run waits and says for whom.

Each holder creates the next epoch, an object that can be created once, and writes a heartbeat beside it. A run that
waits measures time by its own clock. It regards a lease as free when its holder released it, when its holder was a
process of this machine that has exited, or when no heartbeat came for as long as the holder promised one. The lease
only saves duplicate work. Answers stay single without it, because a part can be created once, and a run that was taken
over is refused before it commits.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import OutputError, StoppedError
from pipeline.output.dataset import Dataset
from pipeline.run.log import Say

LEASE_TIMEOUT_S = 60.0  # after so long without a heartbeat a holder counts as dead; VLBATCH_LEASE_S overrides it
HEARTBEATS_PER_TIMEOUT = 6
LEASE_LIFETIME_S = 30 * 86400.0  # then the objects of a lease are deleted
POLL_INTERVAL_S = 2.0  # of a run that waits
COMMIT_GRACE_S = 2.0  # a commit that was allowed has ended by then
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
HELD, RELEASED = "held", "over"  # the first word of a heartbeat


class Lease:
    """Held while it is open. Entering waits until the output is free and sets `epoch`."""

    def __init__(self, dataset: Dataset, run_id: str, *, say: Say, take_over: bool = False):
        self.store, self.folder, self.say, self.take_over = dataset.store, dataset.lease_folder, say, take_over
        self.timeout_s = float(os.environ.get("VLBATCH_LEASE_S") or LEASE_TIMEOUT_S)
        self.holder_record = {
            "run": run_id,
            **describe_process(),
            "since": format_time(datetime.now(UTC)),
            "patience_s": self.timeout_s,
        }
        self.dataset = dataset
        self.epoch = 0
        self.predecessor_unreleased = False
        self.heartbeat_count = 0
        self.renewed_at = time.monotonic()
        self.ended = threading.Event()
        self.taken_over_by: str | None = None  # a run
        self.heartbeat_thread = threading.Thread(target=self.send_heartbeats, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        while not self.try_claim():
            pass
        self.heartbeat_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.heartbeat_thread.join()
        if not self.taken_over_by:
            with suppress(OutputError):  # then the next run waits until the lease times out
                self.write_heartbeat(RELEASED)

    def try_claim(self) -> bool:
        """Wait until the newest epoch is free, then try to create the next one. False if another run was faster."""
        newest = find_newest_epoch(self.dataset)
        if newest and not self.take_over:
            self.wait_until_free(newest)
        self.epoch = newest + 1
        self.predecessor_unreleased = newest > 0 and not is_released(self.dataset, newest)
        record = json.dumps(self.holder_record).encode()
        if not self.store.create_object(f"{self.folder}/{self.epoch:08d}.json", record):
            return False
        self.write_heartbeat(HELD)
        self.delete_old_leases()
        return True

    def delete_old_leases(self) -> None:
        """A worker of an epoch looks only for the next one, so that stays for as long as such a worker may wake up."""
        claim_times = list_claim_times(self.dataset)
        newest_claim = claim_times.get(self.epoch, 0.0)
        for epoch, claimed_at in claim_times.items():
            if epoch < self.epoch and newest_claim - claimed_at > LEASE_LIFETIME_S:
                for ending in ("beat", "json"):
                    with suppress(OutputError):  # some roles may not delete
                        self.store.delete_object(f"{self.folder}/{epoch:08d}.{ending}")

    def wait_for_late_commits(self) -> None:
        """A holder that did not release the lease may be writing a last part. Wait until it is written."""
        if self.predecessor_unreleased:
            time.sleep(COMMIT_GRACE_S)

    def wait_until_free(self, epoch: int) -> None:
        record = read_holder_record(self.dataset, epoch)
        timeout_s = record["patience_s"]
        holder = (
            f"run {record['run']} on {record['host']}, process {record['process']}, running since {record['since']}"
        )
        last_heartbeat, last_change, is_announced = "", time.monotonic(), False
        while not has_holder_exited(record):
            heartbeat = read_heartbeat(self.dataset, epoch)
            if heartbeat.startswith(RELEASED) or find_newest_epoch(self.dataset) > epoch:
                return
            if heartbeat != last_heartbeat:
                last_heartbeat, last_change = heartbeat, time.monotonic()
            elif time.monotonic() - last_change > timeout_s:
                self.say(f"{holder}, has given no sign of life for {timeout_s:g} s; this run takes its place")
                return
            if not is_announced:
                is_announced = True
                self.say(f"{self.store.path}: {holder}; waiting for it to end (--take-over does not wait)")
            time.sleep(min(POLL_INTERVAL_S, timeout_s / HEARTBEATS_PER_TIMEOUT))

    def send_heartbeats(self) -> None:
        while not self.ended.wait(self.timeout_s / HEARTBEATS_PER_TIMEOUT):
            with suppress(OutputError):  # the storage may be back for the next heartbeat, which also notices a takeover
                self.write_heartbeat(HELD)
                self.detect_takeover()

    def detect_takeover(self) -> None:
        newest = find_newest_epoch(self.dataset)
        if newest > self.epoch:
            self.taken_over_by = read_holder_record(self.dataset, newest)["run"]
            self.ended.set()

    def write_heartbeat(self, state: str) -> None:
        self.heartbeat_count += 1
        self.store.overwrite(f"{self.folder}/{self.epoch:08d}.beat", f"{state} {self.heartbeat_count}".encode())
        self.renewed_at = time.monotonic()

    def raise_if_taken_over(self) -> None:
        """The driver's check, as of the last heartbeat."""
        if self.taken_over_by:
            raise StoppedError(
                f"stopped: run {self.taken_over_by} has taken over {self.store.path} and does what was left"
            )


def raise_if_taken_over(dataset: Dataset, epoch: int) -> None:
    """A worker's check before it commits: its driver may have been suspended while another run took over."""
    if epoch and dataset.store.has_object(f"{dataset.lease_folder}/{epoch + 1:08d}.json"):
        raise StoppedError(f"stopped: another run has taken over {dataset.store.path} and does what was left")


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The newest lease, for `status`. A run that was killed on another machine still holds its lease; see `seen`."""

    run: str
    host: str
    since: str
    held: bool
    seen: str  # the last heartbeat, by the store's clock


def read_newest_holder(dataset: Dataset) -> LeaseHolder | None:
    epoch = find_newest_epoch(dataset)
    if not epoch:
        return None
    record = read_holder_record(dataset, epoch)
    held = not is_released(dataset, epoch) and not has_holder_exited(record)
    heartbeat = dataset.store.list_objects(dataset.lease_folder).get(f"{epoch:08d}.beat")
    modified_at = heartbeat.modified_at if heartbeat else None
    seen = format_time(datetime.fromtimestamp(modified_at, UTC)) if modified_at else record["since"]
    return LeaseHolder(record["run"], record["host"], record["since"], held, seen)


def find_newest_epoch(dataset: Dataset) -> int:
    """0 if no run has held a lease."""
    return max(list_claim_times(dataset), default=0)


def list_claim_times(dataset: Dataset) -> dict[int, float]:
    """When each epoch was claimed, by the store's clock."""
    objects = dataset.store.list_objects(dataset.lease_folder)
    names = (name for name in objects if name.endswith(".json"))
    return {int(name.removesuffix(".json")): objects[name].modified_at or 0.0 for name in names}


def read_holder_record(dataset: Dataset, epoch: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(dataset.store.read_object(f"{dataset.lease_folder}/{epoch:08d}.json"))
    return record


def read_heartbeat(dataset: Dataset, epoch: int) -> str:
    name = f"{epoch:08d}.beat"
    if name not in dataset.store.list_names(dataset.lease_folder):
        return ""
    return dataset.store.read_object(f"{dataset.lease_folder}/{name}").decode()


def is_released(dataset: Dataset, epoch: int) -> bool:
    return read_heartbeat(dataset, epoch).startswith(RELEASED)


def format_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def describe_process() -> dict[str, Any]:
    """Enough about this process to tell later, on the same machine, whether it has exited."""
    process = psutil.Process()  # its hash depends on its start time, by a clock that cannot be set
    return {
        "host": socket.gethostname(),
        "machine": identify_machine(),
        "process": process.pid,
        "started": hash(process),
    }


def identify_machine() -> str:
    """The scope of a process number. Containers have their own, and two hosts may share a name."""
    try:
        return f"{BOOT_ID_FILE.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def has_holder_exited(holder_record: dict[str, Any]) -> bool:
    """True only for a process of this machine; those of other machines cannot be seen."""
    if holder_record["machine"] != identify_machine():
        return False
    try:
        return bool(hash(psutil.Process(holder_record["process"])) != holder_record["started"])
    except psutil.NoSuchProcess:
        return True
