"""Slices are answered by any replica, and rows are committed once, whatever is lost, set aside or stopped meanwhile.

Ray is replaced by threads, so that a hundred runs with faults at random take seconds.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from types import SimpleNamespace

import pytest

from pipeline.cluster import chunk_flow
from pipeline.cluster.actor_pool import FinishedTask, Parked
from pipeline.cluster.chunk_flow import ChunkFlow, PoolOptions
from pipeline.errors import StoppedError
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk, Slice
from pipeline.manifest.files import ManifestFile
from pipeline.output.commit import CommitReceipt
from pipeline.run.runner import ignore_work

FILE = ManifestFile("m.parquet", "parquet")
SLICE_ROWS = 4
SET_ASIDE = Parked("its processes die", StoppedError("its processes die"))
TWO_RESULTS = ("prepare_slices", "generate_slices")


class Reference:
    """To one of the results of a call."""

    def __init__(self, call: Future, number: int | None = None):
        self.call, self.number = call, number

    def get(self):
        result = self.call.result()
        return result if self.number is None else result[self.number]

    def future(self):
        own = Future()
        self.call.add_done_callback(lambda call: own.set_result(self.get()))
        return own


class ThreadRay:
    def __init__(self, threads):
        self.threads = threads

    def remote(self, actor_type):
        return SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=lambda *values: self.start(actor_type, values))
        )

    def start(self, actor_type, values):
        actor = actor_type(*values)

        def bind(name):
            def submit(*arguments):
                def call():
                    return getattr(actor, name)(*(a.get() if isinstance(a, Reference) else a for a in arguments))

                future = self.threads.submit(call)
                return [Reference(future, 0), Reference(future, 1)] if name in TWO_RESULTS else Reference(future)

            return SimpleNamespace(remote=submit)

        names = ("find_parked", "commit_part", *TWO_RESULTS)
        return SimpleNamespace(**{name: bind(name) for name in names if hasattr(actor, name)})

    def cluster_resources(self):
        return {"object_store_memory": 10**9}

    def kill(self, handle):
        """Threads end by themselves."""


class World:
    """What is committed, and the faults that are left."""

    def __init__(self, seed: int, stop_after: int | None):
        self.random, self.lock = random.Random(seed), Lock()
        self.faults = self.random.randrange(6)
        self.stopping, self.stop_after = Event(), stop_after
        self.actor_count = 0
        self.answered: Counter[str] = Counter()  # slices
        self.lost: set[str] = set()  # answered slices whose rows went before they were committed
        self.committed: dict[str, list[str]] = {}  # the slices of each part

    def draws_fault(self) -> bool:
        with self.lock:
            is_faulty = self.faults > 0 and self.random.random() < 0.2
            self.faults -= is_faulty
        return is_faulty

    def commit(self, part_name: str, slices: list[str]) -> CommitReceipt:
        with self.lock:
            is_first = self.committed.setdefault(part_name, slices) is slices
        return CommitReceipt(part_name, is_first, len(slices), 0)


class Preparer:
    def __init__(self, world):
        self.world = world

    def find_parked(self):
        return None

    def prepare_slices(self, slices):
        return (None, None) if self.world.draws_fault() else (FinishedTask(100 * len(slices), 0.01), slices)


class Replica:
    def __init__(self, world):
        self.world = world
        with world.lock:
            self.is_broken = world.actor_count == 0 and world.random.random() < 0.5
            world.actor_count += 1

    def find_parked(self):
        return None

    def generate_slices(self, slices):
        world = self.world
        if self.is_broken and world.random.random() < 0.3:
            return SET_ASIDE, None
        if slices is None or world.draws_fault():
            return None, None
        with world.lock:
            world.answered.update(own.name for own in slices)
            if world.stop_after and world.answered.total() >= world.stop_after:
                world.stopping.set()
        receipts = [world.commit(own.name, [own.name]) if own.is_whole else None for own in slices]
        blocks = [None if own.is_whole else own.name for own in slices]
        return FinishedTask(receipts, 0.01), blocks

    def commit_part(self, part_name, is_complete, places, *blocks):
        if self.is_broken and self.world.random.random() < 0.3:
            return SET_ASIDE
        slices = [blocks[block][entry] for block, entry in places]
        if self.world.draws_fault():
            self.world.lost.update(slices)
            return None
        return [self.world.commit(part_name if is_complete else f"some of {part_name}", slices)]


def build_chunk(number: int, slice_count: int) -> Chunk:
    slices = tuple(Slice((0, SLICE_ROWS), f"{number}-{own}", SLICE_ROWS) for own in range(slice_count))
    return Chunk(FILE, (0, 1), f"{number:024x}", SLICE_ROWS * slice_count, slices=slices if slice_count > 1 else ())


def run_flow(monkeypatch, seed, stop_after=None):
    world = World(seed, stop_after)
    chunks = [
        build_chunk(number, world.random.choice([1, 2, 5, 12])) for number in range(world.random.randrange(1, 25))
    ]
    with ThreadPoolExecutor(4) as threads:
        monkeypatch.setattr(chunk_flow, "ray", ThreadRay(threads))
        pools = [
            PoolOptions(worker_type, (world,), {}, min_size=2, max_size=3, tasks_at_once=2, tasks_waiting=2)
            for worker_type in (Preparer, Replica)
        ]
        flow = ChunkFlow(ChunkTable.collect(chunks), SLICE_ROWS, *pools)
        receipts = list(flow.run(world.stopping, ignore_work))
        flow.close()
    assert all(receipt.committed_first for receipt in receipts)
    assert sorted(receipt.part_name for receipt in receipts) == sorted(world.committed)
    committed = Counter(name for slices in world.committed.values() for name in slices)
    assert not committed or max(committed.values()) == 1
    return world, chunks, flow, committed


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_every_slice_is_committed_once_and_every_part_is_whole(monkeypatch, first_seed):
    for seed in range(first_seed, first_seed + 20):
        world, chunks, flow, committed = run_flow(monkeypatch, seed)
        assert world.committed.keys() == {chunk.part_name for chunk in chunks}
        for chunk in chunks:
            slices = world.committed[chunk.part_name]
            count = max(1, len(chunk.slices))
            assert slices == sorted(slices, key=lambda name: int(name.partition(".")[2].partition("of")[0] or 0))
            assert len(slices) == count
        assert committed.total() == sum(max(1, len(chunk.slices)) for chunk in chunks)
        assert (flow.open_parts.row_count, flow.stored_bytes) == (0, 0)


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_a_stop_commits_every_slice_that_is_answered(monkeypatch, first_seed):
    for seed in range(first_seed, first_seed + 20):
        world, _, _, committed = run_flow(monkeypatch, seed, stop_after=1 + seed)
        assert committed.keys() | world.lost == world.answered.keys()
