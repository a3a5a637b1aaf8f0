"""Lets one run at a time work on an output for one question, or on each shard of it. A second one waits for it.

Each holder creates the next epoch, an object that can be created once, and writes a heartbeat beside it. A run that
waits measures time by its own clock. It regards a lease as free when its holder released it, when its holder was a
process of this machine that has exited, or when no heartbeat came for as long as the holder promised one. The lease
only saves duplicate work. Answers stay single without it, because a part can be created once, and a run that was taken
over is refused before it commits.

Runs on shards share an epoch of the output, in which each claims its own shard. The first of them creates the epoch
when no other run is at work; the others join it, and are refused if they see another manifest. All of them cut the
same chunks, so two runs on one shard could at worst answer a chunk twice and commit it once; therefore a commit looks
only for the next epoch of the output.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from pipeline.errors import OutputError, StoppedError
from pipeline.output.dataset import Dataset
from pipeline.run.claims import (
    HELD,
    RELEASED,
    Claims,
    describe_process,
    find_living_shard,
    format_time,
    has_holder_exited,
    list_shard_claims,
    open_claims,
    open_shard_claims,
)
from pipeline.run.log import Say
from pipeline.run.shards import Shard

LEASE_TIMEOUT_S = 60.0  # after so long without a heartbeat a holder counts as dead; VLBATCH_LEASE_S overrides it
HEARTBEATS_PER_TIMEOUT = 6
LEASE_LIFETIME_S = 30 * 86400.0  # then the objects of a lease are deleted
POLL_INTERVAL_S = 2.0  # of a run that waits
COMMIT_GRACE_S = 2.0  # a commit that was allowed has ended by then


class Lease:
    """Held while it is open. Entering waits until the output, or the shard, is free and sets `epoch`."""

    def __init__(self, dataset: Dataset, run_id: str, *, say: Say, take_over: bool = False, shard: Shard | None = None):
        self.dataset, self.say, self.take_over, self.shard = dataset, say, take_over, shard
        self.timeout_s = float(os.environ.get("VLBATCH_LEASE_S") or LEASE_TIMEOUT_S)
        self.holder_record = {
            "run": run_id,
            **describe_process(),
            "since": format_time(datetime.now(UTC)),
            "patience_s": self.timeout_s,
            **({"shards": shard.total} if shard else {}),
        }
        self.output_claims = open_claims(dataset)
        self.epoch = 0  # of the output
        self.claims, self.claimed_epoch = self.output_claims, 0  # what the heartbeats are for
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
        newest = self.output_claims.find_newest()
        if self.shard and newest and self.is_shared(newest, self.shard):
            self.epoch = newest
        else:
            if newest and not self.take_over:
                self.wait_until_free(self.output_claims, newest)
                self.wait_for_shards(newest)
            self.predecessor_unreleased = newest > 0 and not self.is_all_released(newest)
            if not self.claim(self.output_claims, newest + 1):
                return False
            self.epoch = newest + 1
            self.delete_old_leases()
        return self.shard is None or self.claim_shard(self.shard)

    def claim_shard(self, shard: Shard) -> bool:
        """False if it had to wait, if the epoch has ended meanwhile, or if another run was faster."""
        claims = open_shard_claims(self.dataset, self.epoch, shard.number)
        newest = claims.find_newest()
        if newest and not self.take_over and claims.is_alive(newest, self.dataset.read_store_time()):
            self.wait_until_free(claims, newest)
            return False  # the runs on other shards may have ended meanwhile
        creates_epoch = self.claimed_epoch == self.epoch and self.claims is self.output_claims
        if not self.claim(claims, newest + 1):
            return False
        if creates_epoch:  # from now on it lasts as long as any of its shards
            self.output_claims.write_heartbeat(self.epoch, RELEASED)
        if self.output_claims.find_newest() > self.epoch:
            self.write_heartbeat(RELEASED)
            return False
        return True

    def claim(self, claims: Claims, epoch: int) -> bool:
        if not claims.create(epoch, self.holder_record):
            return False
        self.claims, self.claimed_epoch = claims, epoch
        self.write_heartbeat(HELD)
        return True

    def is_shared(self, epoch: int, shard: Shard) -> bool:
        """Whether runs on as many shards are at work in this epoch, or one of them is about to begin."""
        if self.output_claims.read_record(epoch).get("shards") != shard.total:
            return False
        begins = self.output_claims.is_alive(epoch, self.dataset.read_store_time())
        return begins or find_living_shard(self.dataset, epoch) is not None

    def is_all_released(self, epoch: int) -> bool:
        shards = list_shard_claims(self.dataset, epoch)
        return self.output_claims.is_released(epoch) and all(shard.claims.is_released(shard.epoch) for shard in shards)

    def check_same_chunks(self, digest: str) -> None:
        """Raise a StoppedError if the runs on other shards have cut other chunks: two might ask the same row."""
        if not self.shard:
            return
        name = f"{self.dataset.get_shards_folder(self.epoch)}/chunks.txt"
        if self.dataset.store.create_object(name, digest.encode()):
            return
        if self.dataset.store.read_object(name) != digest.encode():
            raise StoppedError(
                f"stopped: other runs work on shards of {self.dataset.store.path}, and when they began, the manifest, "
                "output.chunk_rows, --limit or --except were not the same; run this command again when they have ended"
            )

    def delete_old_leases(self) -> None:
        """A worker of an epoch looks only for the next one, so that stays for as long as such a worker may wake up."""
        claim_times = self.output_claims.list_times()
        newest_claim = claim_times.get(self.epoch, 0.0)
        for epoch, claimed_at in claim_times.items():
            if epoch < self.epoch and newest_claim - claimed_at > LEASE_LIFETIME_S:
                with suppress(OutputError):  # some roles may not delete
                    self.dataset.delete_lease(epoch)

    def wait_for_late_commits(self) -> None:
        """A holder that did not release the lease may be writing a last part. Wait until it is written."""
        if self.predecessor_unreleased:
            time.sleep(COMMIT_GRACE_S)

    def wait_until_free(self, claims: Claims, epoch: int) -> None:
        record = claims.read_record(epoch)
        timeout_s = record["patience_s"]
        holder = (
            f"run {record['run']} on {record['host']}, process {record['process']}, running since {record['since']}"
        )
        last_heartbeat, last_change, is_announced = "", time.monotonic(), False
        while not has_holder_exited(record):
            heartbeat = claims.read_heartbeat(epoch)
            if heartbeat.startswith(RELEASED) or claims.find_newest() > epoch:
                return
            if heartbeat != last_heartbeat:
                last_heartbeat, last_change = heartbeat, time.monotonic()
            elif time.monotonic() - last_change > timeout_s:
                self.say(f"{holder}, has given no sign of life for {timeout_s:g} s; this run takes its place")
                return
            if not is_announced:
                is_announced = True
                self.announce_wait(holder)
            time.sleep(min(POLL_INTERVAL_S, timeout_s / HEARTBEATS_PER_TIMEOUT))

    def wait_for_shards(self, epoch: int) -> None:
        """Until no run is at work on a shard, by the store's clock: there may be many."""
        is_announced = False
        while (shard := find_living_shard(self.dataset, epoch)) and self.output_claims.find_newest() == epoch:
            if not is_announced:
                is_announced = True
                record = shard.claims.read_record(shard.epoch)
                name = f"shard {shard.number}/{record['shards']}"
                self.announce_wait(f"run {record['run']} on {record['host']} works on {name} since {record['since']}")
            time.sleep(min(POLL_INTERVAL_S, self.timeout_s / HEARTBEATS_PER_TIMEOUT))

    def announce_wait(self, holder: str) -> None:
        self.say(f"{self.dataset.store.path}: {holder}; waiting for it to end (--take-over does not wait)")

    def send_heartbeats(self) -> None:
        while not self.ended.wait(self.timeout_s / HEARTBEATS_PER_TIMEOUT):
            with suppress(OutputError):  # the storage may be back for the next heartbeat, which also notices a takeover
                self.write_heartbeat(HELD)
                self.detect_takeover()

    def detect_takeover(self) -> None:
        for claims, epoch in {self.output_claims: self.epoch, self.claims: self.claimed_epoch}.items():
            newest = claims.find_newest()
            if newest > epoch:
                self.taken_over_by = claims.read_record(newest)["run"]
                self.ended.set()

    def write_heartbeat(self, state: str) -> None:
        self.heartbeat_count += 1
        self.claims.write_heartbeat(self.claimed_epoch, f"{state} {self.heartbeat_count}")
        self.renewed_at = time.monotonic()

    def raise_if_taken_over(self) -> None:
        """The driver's check, as of the last heartbeat."""
        if self.taken_over_by:
            raise StoppedError(
                f"stopped: run {self.taken_over_by} has taken over {self.dataset.store.path} and does what was left"
            )


def raise_if_taken_over(dataset: Dataset, epoch: int) -> None:
    """A worker's check before it commits: its driver may have been suspended while another run took over."""
    if epoch and dataset.store.has_object(f"{dataset.lease_folder}/{epoch + 1:08d}.json"):
        raise StoppedError(f"stopped: another run has taken over {dataset.store.path} and does what was left")
