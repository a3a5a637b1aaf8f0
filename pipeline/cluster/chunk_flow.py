"""Feeds the slices of chunks to the actors that prepare them, and prepared slices to the replicas.

A replica commits a chunk of one slice at once. A larger chunk is committed by a task of its own when all its slices are
answered, or when the run is being stopped.

Ray starts actors again that die, repeats their tasks, and makes results again that are lost with a node. So a task
ends with a result, or with an error that stops the run. Results arrive as events of one queue; each costs the driver
the same, however many actors there are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

import ray

from pipeline.cluster.actor_pool import ActorPool, FinishedTask, Parked, PoolActor
from pipeline.cluster.open_parts import CommitTask, OpenParts, PlacedRows
from pipeline.cluster.slice_queue import ChunkSlice, SliceQueue
from pipeline.cluster.task_size import TASK_S, count_task_slices
from pipeline.errors import PipelineError
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.output.commit import CommitReceipt
from pipeline.run import log
from pipeline.run.runner import ShowWork, WorkInFlight

NEWEST_SHARE = 0.2  # of the newest task in the average seconds of a slice
STORE_SHARE = 0.5  # of the object store is for prepared slices
TICK_S = 1.0

FinishEvent = Callable[[PoolActor, Any, Any], Iterable[CommitReceipt]]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    worker_type: type
    arguments: tuple[Any, ...]
    ray_options: Mapping[str, Any]
    min_size: int
    max_size: int | None
    tasks_at_once: int  # that an actor works on
    tasks_waiting: int  # at an actor, beside those


@dataclass(frozen=True, slots=True)
class PreparedTask:
    slices: tuple[ChunkSlice, ...]
    row_count: int
    block: Any  # a reference into the object store
    byte_count: int = 0  # known when it is prepared


class ChunkFlow:
    """`close` ends its actors."""

    def __init__(self, chunks: ChunkTable, slice_rows: int, prepare: PoolOptions, generate: PoolOptions):
        self.events: SimpleQueue[tuple[FinishEvent, PoolActor, Any, Any]] = SimpleQueue()
        self.waiting = SliceQueue(chunks, slice_rows)
        self.unanswered_count = len(self.waiting)
        self.prepared: deque[PreparedTask] = deque()
        self.open_parts = OpenParts()
        self.seconds = {"prepare": 0.0, "generate": 0.0}  # of a slice at an actor, beside others: a moving average
        self.prepared_count = self.prepared_bytes = 0  # of all slices that were prepared
        self.stored_bytes = 0  # of those that wait or are being answered
        self.store_limit = 0.0
        self.tasks_at_once = generate.tasks_at_once
        self.generate_pool, self.prepare_pool = self.open_pool(generate), self.open_pool(prepare)

    def open_pool(self, options: PoolOptions) -> ActorPool:
        actor_type: Any = ray.remote(options.worker_type)
        calls = {"max_concurrency": options.tasks_at_once, "scheduling_strategy": "SPREAD"}
        restarts = {"max_restarts": -1, "max_task_retries": -1}

        def start_actor(actor: PoolActor) -> Any:
            handle = actor_type.options(**calls, **restarts, **options.ray_options).remote(*options.arguments)
            self.expect(self.finish_start, actor, pool, handle.find_parked.remote())
            return handle

        pool = ActorPool(start_actor, options.max_size, options.tasks_at_once + options.tasks_waiting)
        pool.add_actors(options.min_size)
        return pool

    def expect(self, finish: FinishEvent, actor: PoolActor, item: Any, result: Any) -> None:
        """Have `finish(actor, item, result)` called by `run` when the result is there."""
        result.future().add_done_callback(lambda future: self.events.put((finish, actor, item, future)))

    def run(self, stopping: Event, show_work: ShowWork) -> Generator[CommitReceipt, None, None]:
        """Yield the receipts of all chunks; once `stopping` is set, only of those that have begun."""
        next_tick = 0.0
        while not self.is_finished(stopping):
            if time.monotonic() >= next_tick:
                self.tick(show_work)
                next_tick = time.monotonic() + TICK_S
            if stopping.is_set():
                self.submit_last_commits()
            else:
                self.submit_tasks()
            try:
                finish, actor, item, future = self.events.get(timeout=TICK_S)
            except Empty:
                continue
            if actor.handle is not None:
                yield from finish(actor, item, future.result())

    def is_finished(self, stopping: Event) -> bool:
        if self.prepare_pool.tasks_in_flight or self.generate_pool.tasks_in_flight:
            return False
        if stopping.is_set():
            return not (self.open_parts.parts or self.open_parts.waiting)
        return not (self.waiting or self.prepared or self.open_parts.waiting)

    def tick(self, show_work: ShowWork) -> None:
        show_work(
            WorkInFlight(
                self.prepare_pool.rows_in_flight,
                self.generate_pool.rows_in_flight + self.open_parts.row_count,
                len(self.generate_pool.starting),
                self.generate_pool.ready_count,
            )
        )
        self.store_limit = STORE_SHARE * ray.cluster_resources().get("object_store_memory", 0.0)
        for pool in (self.prepare_pool, self.generate_pool):
            pool.raise_if_unusable()

    def submit_commits(self) -> None:
        while self.open_parts.waiting and (actor := self.generate_pool.pick_actor()):
            task = self.open_parts.waiting.pop()
            blocks = list(dict.fromkeys(rows.block for rows in task.rows))
            places = [(blocks.index(rows.block), rows.number) for rows in task.rows]
            self.generate_pool.change_load(actor, 1, 0)
            result = actor.handle.commit_part.remote(task.part_name, task.is_complete, places, *blocks)
            self.expect(self.finish_commit, actor, task, result)
        if self.open_parts.waiting and not self.generate_pool.ready_count:
            self.generate_pool.grow(len(self.open_parts.waiting))

    def submit_last_commits(self) -> None:
        """Of a run that is being stopped: what is answered when nothing is being answered any more."""
        if not (self.prepare_pool.tasks_in_flight or self.generate_pool.tasks_in_flight):
            self.open_parts.give_up_missing_slices()
        self.submit_commits()

    def submit_tasks(self) -> None:
        self.submit_commits()
        while self.prepared and (actor := self.generate_pool.pick_actor()):
            task = self.prepared.popleft()
            self.generate_pool.change_load(actor, 1, task.row_count)
            result, answered = actor.handle.generate_slices.remote(task.block)
            self.expect(self.finish_generate, actor, (task, answered), result)
        slice_count = count_task_slices(
            len(self.waiting),
            max(self.seconds.values()) if all(self.seconds.values()) else TASK_S,
            self.prepared_bytes / max(1, self.prepared_count),
            self.generate_pool.tasks_per_actor * max(1, self.generate_pool.ready_count),
        )
        while self.waiting and self.has_room(slice_count) and (actor := self.prepare_pool.pick_actor()):
            slices = self.waiting.take(slice_count)
            result, block = actor.handle.prepare_slices.remote(slices)
            task = PreparedTask(slices, sum(own.rows.asked_row_count for own in slices), block)
            self.prepare_pool.change_load(actor, 1, task.row_count)
            self.expect(self.finish_prepare, actor, task, result)
        waiting_tasks = -(-len(self.waiting) // slice_count)
        if self.prepared:
            work_s = self.unanswered_count * self.seconds["generate"] / self.tasks_at_once
            self.generate_pool.grow(len(self.prepared) + waiting_tasks, work_s)
        if self.waiting and self.has_room(slice_count):
            self.prepare_pool.grow(waiting_tasks)
        if not self.waiting:
            kill_actors(self.prepare_pool.release_idle())
            if not (self.prepared or self.prepare_pool.tasks_in_flight or self.open_parts.waiting):
                kill_actors(self.generate_pool.release_idle())

    def has_room(self, slice_count: int) -> bool:
        """Whether one more task may be prepared: replicas will have room for it, or few wait; and so has the store."""
        tasks = self.prepare_pool.tasks_in_flight
        if tasks + len(self.prepared) >= self.generate_pool.count_free_slots() + max(1, self.prepare_pool.ready_count):
            return False
        expected_bytes = (tasks + 1) * slice_count * self.prepared_bytes / max(1, self.prepared_count)
        return self.stored_bytes + expected_bytes <= self.store_limit or not (tasks or self.stored_bytes)

    def finish_start(self, actor: PoolActor, pool: ActorPool, parked: Parked | None) -> Iterable[CommitReceipt]:
        if parked:
            park_actor(pool, actor, parked)
        elif actor in pool.starting:
            pool.set_ready(actor)
        return ()

    def finish_prepare(
        self, actor: PoolActor, task: PreparedTask, result: FinishedTask[int] | PipelineError | Parked | None
    ) -> Iterable[CommitReceipt]:
        self.prepare_pool.change_load(actor, -1, -task.row_count)
        if isinstance(result, PipelineError):
            raise result
        if isinstance(result, FinishedTask):
            self.measure("prepare", task, result.seconds)
            self.prepared.append(replace(task, byte_count=result.value))
            self.prepared_count += len(task.slices)
            self.prepared_bytes += result.value
            self.stored_bytes += result.value
            return ()
        self.waiting.put_back(task.slices)
        if result:
            park_actor(self.prepare_pool, actor, result)
        return ()

    def finish_generate(
        self,
        actor: PoolActor,
        item: tuple[PreparedTask, Any],
        result: FinishedTask[list[CommitReceipt | None]] | PipelineError | Parked | None,
    ) -> Iterable[CommitReceipt]:
        task, answered = item
        self.generate_pool.change_load(actor, -1, -task.row_count)
        if isinstance(result, PipelineError):
            raise result
        if isinstance(result, Parked):
            self.prepared.appendleft(task)
            park_actor(self.generate_pool, actor, result)
            return ()
        self.stored_bytes -= task.byte_count
        if result is None:  # it was lost, and could not be prepared again
            self.waiting.put_back(task.slices)
            return ()
        self.measure("generate", task, result.seconds)
        self.unanswered_count -= len(task.slices)
        for number, (own, receipt) in enumerate(zip(task.slices, result.value, strict=True)):
            if receipt is None:
                self.open_parts.add(own, PlacedRows(answered, number))
        return [receipt for receipt in result.value if receipt]

    def finish_commit(
        self, actor: PoolActor, task: CommitTask, result: list[CommitReceipt | None] | PipelineError | Parked | None
    ) -> Iterable[CommitReceipt]:
        self.generate_pool.change_load(actor, -1, 0)
        if isinstance(result, PipelineError):
            raise result
        if isinstance(result, Parked):
            self.open_parts.waiting.append(task)
            park_actor(self.generate_pool, actor, result)
            return ()
        self.open_parts.finish(task)
        if result is None:  # the rows were lost, and could not be made again
            self.waiting.put_back(task.slices)
            self.unanswered_count += len(task.slices)
        return [receipt for receipt in result or () if receipt]

    def measure(self, stage: str, task: PreparedTask, seconds: float) -> None:
        latest, average = seconds / len(task.slices), self.seconds[stage]
        self.seconds[stage] = average + NEWEST_SHARE * (latest - average) if average else latest

    def close(self) -> None:
        """End the actors: at once where they work on something."""
        for pool in (self.prepare_pool, self.generate_pool):
            kill_actors(pool.release_all())


def park_actor(pool: ActorPool, actor: PoolActor, parked: Parked) -> None:
    if pool.park(actor, parked):
        pool.raise_if_unusable()
        log.write_message(f"a worker is set aside, and the others go on: {parked.reason}")


def kill_actors(handles: Sequence[Any]) -> None:
    for handle in handles:
        ray.kill(handle)
