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
from pipeline.output.store import Store

PATIENCE_S = 60.0  # without a beat for so long, a holder counts as gone; VLBATCH_LEASE_S says otherwise
BEATS = 6  # in that time
LOOK_S = 2.0  # how often a waiting run looks
SETTLE_S = 2.0  # for one commit, once it was allowed
BOOT = Path("/proc/sys/kernel/random/boot_id")

Say = Callable[[str], None]


class Lease:
    """Opened around a run: `epoch` is set, and given back at the end."""

    def __init__(self, store: Store, fingerprint: str, run: str, *, say: Say, take_over: bool = False):
        self.store, self.folder, self.say, self.take_over = store, f"lease/fp={fingerprint}", say, take_over
        self.patience_s = float(os.environ.get("VLBATCH_LEASE_S") or PATIENCE_S)
        self.card = {"run": run, **place(), "since": said(datetime.now(UTC)), "patience_s": self.patience_s}
        self.epoch = 0
        self.wrested = False
        self.beats = 0
        self.renewed = time.monotonic()
        self.over = threading.Event()
        self.taken: str | None = None  # who took it
        self.heart = threading.Thread(target=self.beat, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        while not self.claim():
            pass
        self.heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.heart.join()
        if not self.taken:
            with suppress(OutputError):  # then the next run waits until it may doubt us
                self.mark("over")

    def claim(self) -> bool:
        """Wait until the newest epoch is free, then try to be the next."""
        newest = holders(self.store, self.folder)
        if newest and not self.take_over:
            self.wait(max(newest))
        self.epoch = max(newest, default=0) + 1
        self.wrested = bool(newest) and not beat_of(self.store, self.folder, max(newest)).startswith("over")
        if not self.store.create(f"{self.folder}/{self.epoch:08d}.json", json.dumps(self.card).encode()):
            return False
        self.mark("held")
        return True

    def settle(self) -> None:
        """After who did not give it back: what was allowed before and is being written is there when this ends."""
        if self.wrested:
            time.sleep(SETTLE_S)

    def wait(self, epoch: int) -> None:
        card = json.loads(self.store.read(f"{self.folder}/{epoch:08d}.json"))
        who = f"run {card['run']} on {card['host']}, process {card['process']}, at work since {card['since']}"
        last, seen, told = "", time.monotonic(), False
        while not gone(card):
            beat = beat_of(self.store, self.folder, epoch)
            if beat.startswith("over") or max(holders(self.store, self.folder)) > epoch:
                return
            if beat != last:
                last, seen = beat, time.monotonic()
            elif time.monotonic() - seen > card["patience_s"]:
                self.say(f"{who}, has shown no sign of life for {card['patience_s']:g} s; going on in its place")
                return
            if not told:
                told = True
                self.say(f"{self.store.path}: {who}; waiting for it to end (--take-over does not wait)")
            time.sleep(min(LOOK_S, card["patience_s"] / BEATS))

    def beat(self) -> None:
        while not self.over.wait(self.patience_s / BEATS):
            try:
                self.mark("held")
                self.look()
            except OutputError:
                continue  # the storage may be back at the next beat; whoever takes over in between is seen then

    def look(self) -> None:
        newest = max(holders(self.store, self.folder))
        if newest > self.epoch:
            self.taken = json.loads(self.store.read(f"{self.folder}/{newest:08d}.json"))["run"]
            self.over.set()

    def mark(self, state: str) -> None:
        self.beats += 1
        self.store.replace(f"{self.folder}/{self.epoch:08d}.beat", f"{state} {self.beats}".encode())
        self.renewed = time.monotonic()

    def check(self) -> None:
        """Between two receipts: is the output still ours?"""
        if self.taken:
            raise StoppedError(f"stopped: run {self.taken} has taken over {self.store.path}; it does what was left")


def refuse_if_taken(store: Store, fingerprint: str, epoch: int) -> None:
    """What a worker asks just before it commits: it may work for a driver that slept while another took over."""
    if epoch and max(holders(store, f"lease/fp={fingerprint}"), default=0) > epoch:
        raise StoppedError(f"stopped: another run has taken over {store.path}; it does what was left")


@dataclass(frozen=True, slots=True)
class Holder:
    """The newest lease, as `status` shows it. Who was killed on another machine holds it still: `seen` tells."""

    run: str
    host: str
    since: str
    held: bool
    seen: str  # when it beat last, by the store's clock


def newest(store: Store, fingerprint: str) -> Holder | None:
    folder = f"lease/fp={fingerprint}"
    epoch = max(holders(store, folder), default=None)
    if epoch is None:
        return None
    card = json.loads(store.read(f"{folder}/{epoch:08d}.json"))
    held = not beat_of(store, folder, epoch).startswith("over") and not gone(card)
    beat = store.listing(folder).get(f"{epoch:08d}.beat")
    seen = said(datetime.fromtimestamp(beat.modified, UTC)) if beat and beat.modified else card["since"]
    return Holder(card["run"], card["host"], card["since"], held, seen)


def holders(store: Store, folder: str) -> list[int]:
    return [int(name.removesuffix(".json")) for name in store.names(folder) if name.endswith(".json")]


def said(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def beat_of(store: Store, folder: str, epoch: int) -> str:
    name = f"{epoch:08d}.beat"
    return store.read(f"{folder}/{name}").decode() if name in store.names(folder) else ""


def place() -> dict[str, Any]:
    """Where this process is: enough to tell, on the same machine, that it is no more."""
    me = psutil.Process()  # its hash is of the moment it began, by a clock that nobody sets
    return {"host": socket.gethostname(), "machine": machine(), "process": me.pid, "started": hash(me)}


def machine() -> str:
    """The space in which a process number means something; containers have their own, and hosts may share a name."""
    try:
        return f"{BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def gone(card: dict[str, Any]) -> bool:
    """Whether the holder was a process here that runs no more."""
    if card["machine"] != machine():
        return False
    try:
        return bool(hash(psutil.Process(card["process"])) != card["started"])
    except psutil.NoSuchProcess:
        return True
