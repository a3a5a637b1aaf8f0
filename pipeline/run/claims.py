"""The objects by which runs claim an output, or a shard of it, one after the other.

00000003.json    who claimed epoch 3; it can be created once
00000003.beat    the last heartbeat of that run, or that it has released the epoch
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
CLOCK_SLACK_S = 1.0  # some stores tell times in whole seconds
HELD, RELEASED = "held", "over"  # the first word of a heartbeat


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """A run that claimed an output, or a shard of it. One that was killed on another machine still holds it; see
    `seen`."""

    run: str
    host: str
    since: str
    held: bool
    seen: str  # the last heartbeat, by the store's clock


@dataclass(frozen=True, slots=True)
class Claims:
    """The epochs of one folder."""

    store: OutputStore
    folder: str

    def create(self, epoch: int, record: Mapping[str, Any]) -> bool:
        """False if another run has claimed this epoch."""
        return self.store.create_object(f"{self.folder}/{epoch:08d}.json", json.dumps(record).encode())

    def list_times(self) -> dict[int, float]:
        """When each epoch was claimed, by the store's clock."""
        objects = self.store.list_objects(self.folder)
        names = (name for name in objects if name.endswith(".json"))
        return {int(name.removesuffix(".json")): objects[name].modified_at or 0.0 for name in names}

    def find_newest(self) -> int:
        """0 if no run has claimed one."""
        return max(self.list_times(), default=0)

    def read_record(self, epoch: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.store.read_object(f"{self.folder}/{epoch:08d}.json"))
        return record

    def write_heartbeat(self, epoch: int, text: str) -> None:
        self.store.overwrite(f"{self.folder}/{epoch:08d}.beat", text.encode())

    def read_heartbeat(self, epoch: int) -> str:
        name = f"{epoch:08d}.beat"
        if name not in self.store.list_names(self.folder):
            return ""
        return self.store.read_object(f"{self.folder}/{name}").decode()

    def is_released(self, epoch: int) -> bool:
        return self.read_heartbeat(epoch).startswith(RELEASED)

    def read_holder(self, epoch: int) -> LeaseHolder:
        record = self.read_record(epoch)
        held = not self.is_released(epoch) and not has_holder_exited(record)
        heartbeat = self.store.list_objects(self.folder).get(f"{epoch:08d}.beat")
        modified_at = heartbeat.modified_at if heartbeat else None
        seen = format_time(datetime.fromtimestamp(modified_at, UTC)) if modified_at else record["since"]
        return LeaseHolder(record["run"], record["host"], record["since"], held, seen)

    def is_alive(self, epoch: int, now: float | None) -> bool:
        """Whether the holder gave a sign of life in time, by the store's clock. Stores without times keep it alive."""
        record = self.read_record(epoch)
        if self.is_released(epoch) or has_holder_exited(record):
            return False
        objects = self.store.list_objects(self.folder)
        info = objects.get(f"{epoch:08d}.beat") or objects[f"{epoch:08d}.json"]
        if now is None or info.modified_at is None:
            return True
        patience_s: float = record["patience_s"]
        return now - info.modified_at <= patience_s + CLOCK_SLACK_S


class ShardClaim(NamedTuple):
    """The newest claim of a shard."""

    number: int
    claims: Claims
    epoch: int


def open_claims(dataset: Dataset) -> Claims:
    """Of the whole output. Each epoch is one run, or the runs on all shards."""
    return Claims(dataset.store, dataset.lease_folder)


def open_shard_claims(dataset: Dataset, epoch: int, number: int) -> Claims:
    return Claims(dataset.store, f"{dataset.get_shards_folder(epoch)}/{number}")


def list_shard_claims(dataset: Dataset, epoch: int) -> list[ShardClaim]:
    """Those of all shards that a run has claimed in an epoch of the output, in order."""
    newest: dict[int, int] = {}
    for name in dataset.store.list_names(dataset.get_shards_folder(epoch)):
        number, _, file = name.partition("/")
        if file.endswith(".json"):
            newest[int(number)] = max(newest.get(int(number), 0), int(file.removesuffix(".json")))
    return [ShardClaim(number, open_shard_claims(dataset, epoch, number), newest[number]) for number in sorted(newest)]


def read_shard_holders(dataset: Dataset, epoch: int) -> dict[int, LeaseHolder]:
    """By the number of the shard."""
    claims = list_shard_claims(dataset, epoch)
    holders = map_in_threads(lambda claim: claim.claims.read_holder(claim.epoch), claims)
    return {claim.number: holder for claim, holder in zip(claims, holders, strict=True)}


def find_living_shard(dataset: Dataset, epoch: int) -> ShardClaim | None:
    """A shard whose run is at work, if there is one."""
    now = dataset.read_store_time()
    claims = list_shard_claims(dataset, epoch)
    alive = map_in_threads(lambda claim: claim.claims.is_alive(claim.epoch, now), claims)
    return next((claim for claim, is_alive in zip(claims, alive, strict=True) if is_alive), None)


def read_newest_holder(dataset: Dataset) -> LeaseHolder | None:
    """Of an output in shards: a run that is at work, or the last one that began."""
    claims = open_claims(dataset)
    epoch = claims.find_newest()
    if not epoch:
        return None
    if shard_holders := read_shard_holders(dataset, epoch).values():
        return max(shard_holders, key=lambda holder: (holder.held, holder.since))
    return claims.read_holder(epoch)


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


def has_holder_exited(holder_record: Mapping[str, Any]) -> bool:
    """True only for a process of this machine; those of other machines cannot be seen."""
    if holder_record["machine"] != identify_machine():
        return False
    try:
        return bool(hash(psutil.Process(holder_record["process"])) != holder_record["started"])
    except psutil.NoSuchProcess:
        return True
