"""A chunk's rows, a Stage -> what the stage makes of them, with rows that end processes kept apart.

Each process of a pool opens one Isolation. Ordinary chunks share the process; a chunk with suspects has it alone,
so that a death has one cause. That costs two small calls a chunk, one of them waited for: 0.7 ms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.crash_ledger import MAX_CRASHES, CrashLedger, StepInstructions, WorkerProcess
from pipeline.errors import PipelineError, StoppedError

LOG_TAIL_BYTES = 64 * 2**10
LOG_READ_TIMEOUT_S = 60.0  # for the last words of a process on another node

RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")
ChunkResultT = TypeVar("ChunkResultT")


@dataclass(frozen=True, slots=True)
class ChunkStage(Generic[RowT, ResultT, ChunkResultT]):
    """What is done with one chunk, in the four parts that may have to be done apart."""

    load_rows: Callable[[], Sequence[RowT]]
    process_rows: Callable[[Sequence[RowT]], Sequence[ResultT]]  # a result for each row, in order
    fail_row: Callable[[RowT, str], ResultT]  # of a row that ends every process; why, in a sentence
    finish_chunk: Callable[[Sequence[ResultT]], ChunkResultT]


def start_ledger() -> Any:
    """The ledger of one run: an actor where the driver is, because without a driver nobody needs it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(CrashLedger)
    lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return actor.options(**lasting, scheduling_strategy=here).remote(is_node_alive)


def is_node_alive(node_id: str) -> bool:
    return any(each["NodeID"] == node_id and each["Alive"] for each in ray.nodes())


class CrashIsolation:
    """Open once per process. `sole`: it works on one chunk at a time."""

    def __init__(self, ledger: Any, stage: str, *, exclusive: bool):
        self.ledger, self.stage, self.exclusive = ledger, stage, exclusive
        self.lock = SharedExclusiveLock()
        log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
        here = ray.get_runtime_context()
        self.actor_id = here.get_actor_id()
        self.process = WorkerProcess(here.get_node_id(), os.getpid(), log)

    def open_worker(self, factory: Callable[[], ResultT]) -> ResultT | PipelineError:
        """What the process works with, or why it cannot work."""
        order = ray.get(self.ledger.begin_start.remote(self.stage, self.actor_id, self.process))
        try:
            raise_if_refused(order)
            return factory()
        except PipelineError as error:
            return error
        finally:
            self.ledger.finish_start.remote(self.actor_id)

    def run_stage(
        self, part_name: str, row_count: int, chunk_stage: ChunkStage[RowT, ResultT, ChunkResultT]
    ) -> ChunkResultT | None:
        """None: the run is being stopped, and nothing was begun."""
        step = self.stage, part_name
        with self.lock.hold_shared():
            order = ray.get(self.ledger.begin_step.remote(step, row_count, self.process, self.exclusive))
            if order is None:
                return None
            raise_if_refused(order)
            if not (order.groups or order.given_up):
                results = chunk_stage.process_rows(chunk_stage.load_rows())
                self.ledger.set_active_rows.remote(step, (), self.process)
                return self.finish_step(step, chunk_stage, results)
        with self.lock.hold_exclusive():
            self.set_active_rows(step, ())
            loaded, found = chunk_stage.load_rows(), dict[int, ResultT]()
            for group in order.groups:
                self.set_active_rows(step, group)
                found |= zip(group, chunk_stage.process_rows([loaded[row] for row in group]), strict=True)
            self.set_active_rows(step, ())
            found |= {
                row: chunk_stage.fail_row(loaded[row], describe_crashes(last)) for row, last in order.given_up.items()
            }
            return self.finish_step(step, chunk_stage, [found[row] for row in range(row_count)])

    def set_active_rows(self, step_key: tuple[str, str], row_group: tuple[int, ...]) -> None:
        ray.get(self.ledger.set_active_rows.remote(step_key, row_group, self.process))

    def finish_step(
        self,
        step_key: tuple[str, str],
        chunk_stage: ChunkStage[RowT, ResultT, ChunkResultT],
        results: Sequence[ResultT],
    ) -> ChunkResultT:
        whole = chunk_stage.finish_chunk(results)
        self.ledger.finish_step.remote(step_key)
        return whole


class SharedExclusiveLock:
    """Many share, or one is alone; who wants to be alone waits for no newcomers."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.shared_count = self.exclusive_waiting = 0
        self.is_exclusive = False

    @contextmanager
    def hold_shared(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not (self.is_exclusive or self.exclusive_waiting))
            self.shared_count += 1
        try:
            yield
        finally:
            with self.changed:
                self.shared_count -= 1
                self.changed.notify_all()

    @contextmanager
    def hold_exclusive(self) -> Iterator[None]:
        with self.changed:
            self.exclusive_waiting += 1
            self.changed.wait_for(lambda: not (self.is_exclusive or self.shared_count))
            self.exclusive_waiting -= 1
            self.is_exclusive = True
        try:
            yield
        finally:
            with self.changed:
                self.is_exclusive = False
                self.changed.notify_all()


def raise_if_refused(instructions: StepInstructions) -> None:
    if instructions.stop_reason:
        raise StoppedError(
            f"stopped: {instructions.stop_reason}{f'. {describe_last_words(instructions.last_process)}' if instructions.last_process else ''}"
        )


def describe_crashes(last_process: WorkerProcess) -> str:
    """How a row ended its processes, for people."""
    return (
        f"{MAX_CRASHES} processes died while they worked on this row and nothing else. {describe_last_words(last_process)}. "
        "Look at what the row asks, or give a worker more memory, and drive it again with --retry-errors"
    )


def describe_last_words(process: WorkerProcess) -> str:
    try:
        words = read_last_words(process)
    except ray.exceptions.RayError:  # its node is gone, or too busy to answer
        return f"What the last one said went to {process.log_path} on its node"
    return f"The last one said: {words or 'nothing, so it was killed from outside, most likely for want of memory'}"


def read_last_words(process: WorkerProcess) -> str:
    """What a process wrote as it died, read on its node."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        return read_crash_line(process.log_path)
    there = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    read: Any = ray.remote(read_crash_line)
    words = read.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(process.log_path)
    return str(ray.get(words, timeout=LOG_READ_TIMEOUT_S))


def read_crash_line(log_path: str) -> str:
    """The line in which Python, or we, say why the process ends."""
    try:
        with open(log_path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    why = [line.strip() for line in lines if line.startswith(("Fatal Python error: ", "vlbatch: "))]
    return why[-1].removeprefix("vlbatch: ") if why else ""
