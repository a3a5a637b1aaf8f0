"""One run at a time on an output, for one question; a second one knows whom it waits for.

Each holder creates the next epoch, an object that can be created once, and beats beside it. Who waits judges by its
own clock: a lease is free when it was given back, when its holder is a dead process of this machine, or when no beat
was seen for as long as the holder promised one. That saves work done twice; it is not what keeps answers single: a
part can be created once, and who was taken over is refused before it commits what it still holds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import OutputError, StoppedError
from pipeline.output.store import OutputStore

LEASE_TIMEOUT_S = 60.0  # without a beat for so long, a holder counts as gone; VLBATCH_LEASE_S says otherwise
HEARTBEATS_PER_TIMEOUT = 6  # in that time
POLL_INTERVAL_S = 2.0  # how often a waiting run looks
COMMIT_GRACE_S = 2.0  # for one commit, once it was allowed
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

Say = Callable[[str], None]


class Lease:
    """Opened around a run: `epoch` is set, and given back at the end."""

    def __init__(self, store: OutputStore, fingerprint: str, run: str, *, say: Say, take_over: bool = False):
        self.store, self.folder, self.say, self.take_over = store, f"lease/fp={fingerprint}", say, take_over
        self.timeout_s = float(os.environ.get("VLBATCH_LEASE_S") or LEASE_TIMEOUT_S)
        self.holder_record = {
            "run": run,
            **describe_process(),
            "since": format_time(datetime.now(UTC)),
            "patience_s": self.timeout_s,
        }
        self.epoch = 0
        self.predecessor_unreleased = False
        self.heartbeat_count = 0
        self.renewed_at = time.monotonic()
        self.ended = threading.Event()
        self.taken_over_by: str | None = None  # who took it
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
            with suppress(OutputError):  # then the next run waits until it may doubt us
                self.write_heartbeat("over")

    def try_claim(self) -> bool:
        """Wait until the newest epoch is free, then try to be the next."""
        newest = list_epochs(self.store, self.folder)
        if newest and not self.take_over:
            self.wait_until_free(max(newest))
        self.epoch = max(newest, default=0) + 1
        self.predecessor_unreleased = bool(newest) and not read_heartbeat(
            self.store, self.folder, max(newest)
        ).startswith("over")
        if not self.store.create_object(
            f"{self.folder}/{self.epoch:08d}.json", json.dumps(self.holder_record).encode()
        ):
            return False
        self.write_heartbeat("held")
        return True

    def wait_for_late_commits(self) -> None:
        """After who did not give it back: what was allowed before and is being written is there when this ends."""
        if self.predecessor_unreleased:
            time.sleep(COMMIT_GRACE_S)

    def wait_until_free(self, epoch: int) -> None:
        card = json.loads(self.store.read_object(f"{self.folder}/{epoch:08d}.json"))
        who = f"run {card['run']} on {card['host']}, process {card['process']}, at work since {card['since']}"
        last, seen, told = "", time.monotonic(), False
        while not has_holder_exited(card):
            beat = read_heartbeat(self.store, self.folder, epoch)
            if beat.startswith("over") or max(list_epochs(self.store, self.folder)) > epoch:
                return
            if beat != last:
                last, seen = beat, time.monotonic()
            elif time.monotonic() - seen > card["patience_s"]:
                self.say(f"{who}, has shown no sign of life for {card['patience_s']:g} s; going on in its place")
                return
            if not told:
                told = True
                self.say(f"{self.store.path}: {who}; waiting for it to end (--take-over does not wait)")
            time.sleep(min(POLL_INTERVAL_S, card["patience_s"] / HEARTBEATS_PER_TIMEOUT))

    def send_heartbeats(self) -> None:
        while not self.ended.wait(self.timeout_s / HEARTBEATS_PER_TIMEOUT):
            try:
                self.write_heartbeat("held")
                self.detect_takeover()
            except OutputError:
                continue  # the storage may be back at the next beat; whoever takes over in between is seen then

    def detect_takeover(self) -> None:
        newest = max(list_epochs(self.store, self.folder))
        if newest > self.epoch:
            self.taken_over_by = json.loads(self.store.read_object(f"{self.folder}/{newest:08d}.json"))["run"]
            self.ended.set()

    def write_heartbeat(self, state: str) -> None:
        self.heartbeat_count += 1
        self.store.overwrite(f"{self.folder}/{self.epoch:08d}.beat", f"{state} {self.heartbeat_count}".encode())
        self.renewed_at = time.monotonic()

    def raise_if_taken_over(self) -> None:
        """Between two receipts: is the output still ours?"""
        if self.taken_over_by:
            raise StoppedError(
                f"stopped: run {self.taken_over_by} has taken over {self.store.path}; it does what was left"
            )


def raise_if_taken_over(store: OutputStore, fingerprint: str, epoch: int) -> None:
    """What a worker asks just before it commits: it may work for a driver that slept while another took over."""
    if epoch and max(list_epochs(store, f"lease/fp={fingerprint}"), default=0) > epoch:
        raise StoppedError(f"stopped: another run has taken over {store.path}; it does what was left")


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The newest lease, as `status` shows it. Who was killed on another machine holds it still: `seen` tells."""

    run: str
    host: str
    since: str
    held: bool
    seen: str  # when it beat last, by the store's clock


def read_newest_holder(store: OutputStore, fingerprint: str) -> LeaseHolder | None:
    folder = f"lease/fp={fingerprint}"
    epoch = max(list_epochs(store, folder), default=None)
    if epoch is None:
        return None
    card = json.loads(store.read_object(f"{folder}/{epoch:08d}.json"))
    held = not read_heartbeat(store, folder, epoch).startswith("over") and not has_holder_exited(card)
    beat = store.list_objects(folder).get(f"{epoch:08d}.beat")
    seen = format_time(datetime.fromtimestamp(beat.modified_at, UTC)) if beat and beat.modified_at else card["since"]
    return LeaseHolder(card["run"], card["host"], card["since"], held, seen)


def list_epochs(store: OutputStore, folder: str) -> list[int]:
    return [int(name.removesuffix(".json")) for name in store.list_names(folder) if name.endswith(".json")]


def format_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def read_heartbeat(store: OutputStore, folder: str, epoch: int) -> str:
    name = f"{epoch:08d}.beat"
    return store.read_object(f"{folder}/{name}").decode() if name in store.list_names(folder) else ""


def describe_process() -> dict[str, Any]:
    """Where this process is: enough to tell, on the same machine, that it is no more."""
    me = psutil.Process()  # its hash is of the moment it began, by a clock that nobody sets
    return {"host": socket.gethostname(), "machine": identify_machine(), "process": me.pid, "started": hash(me)}


def identify_machine() -> str:
    """The space in which a process number means something; containers have their own, and hosts may share a name."""
    try:
        return f"{BOOT_ID_FILE.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def has_holder_exited(holder_record: dict[str, Any]) -> bool:
    """Whether the holder was a process here that runs no more."""
    if holder_record["machine"] != identify_machine():
        return False
    try:
        return bool(hash(psutil.Process(holder_record["process"])) != holder_record["started"])
    except psutil.NoSuchProcess:
        return True
