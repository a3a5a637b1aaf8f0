"""Opens leases and lets them wait for each other in threads.

A lease without a list for its messages must not wait: the test fails when it says that it does.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipeline.output.dataset import Dataset
from pipeline.run.lease import Lease
from pipeline.run.shards import Shard

TIMEOUT_S = 300.0  # for what takes milliseconds on an idle machine


def open_lease(
    dataset: Dataset,
    run_id: str,
    shard: tuple[int, int] | None = None,
    messages: list[str] | None = None,
    **options: Any,
) -> Lease:
    say = pytest.fail if messages is None else messages.append
    return Lease(dataset, run_id, say=say, shard=Shard(*shard) if shard else None, **options)


def claim_on_another_machine(
    dataset: Dataset, run_id: str, shard: tuple[int, int] | None = None, *, timeout_s: float
) -> Lease:
    """A run that sends no heartbeat any more."""
    there = open_lease(dataset, run_id, shard)
    there.holder_record |= {"host": "far", "machine": "far", "patience_s": timeout_s}
    assert there.try_claim()
    return there


class WaitingRun:
    """A run in a thread. It has to wait for its lease, and releases it at once."""

    def __init__(self, dataset: Dataset, run_id: str, shard: tuple[int, int] | None = None):
        self.messages: list[str] = []
        self.lease = open_lease(dataset, run_id, shard, self.messages)
        self.ended = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()  # a run that waits for ever ends with the tests

    def run(self) -> None:
        try:
            with self.lease:
                pass
        finally:
            self.ended.set()

    def read_announcement(self) -> str:
        """Wait until it says for whom it waits."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.messages:
            assert not self.ended.is_set(), "it does not wait"
            assert time.monotonic() < deadline, "it neither waits nor ends"
            time.sleep(0.01)
        return self.messages[0]

    def read_epoch(self) -> int:
        """Wait until it has ended."""
        assert self.ended.wait(TIMEOUT_S), "it waits for ever"
        return self.lease.epoch
