"""Runs a stage on the rows of a chunk and keeps rows that crash processes apart from the others.

Every process of a pool opens one CrashIsolation. Ordinary chunks share the process; a chunk with suspects has it alone,
so that a crash has one cause. A task makes two calls to the ledger, however many chunks it has.
"""

from __future__ import annotations

import atexit
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.actor_pool import Parked
from pipeline.cluster.crash_ledger import (
    MAX_CRASHES,
    CrashLedger,
    RowGroup,
    StepInstructions,
    StepKey,
    WorkerProcess,
)
from pipeline.errors import ExitCode, PipelineError, StoppedError

LOG_TAIL_BYTES = 64 * 2**10
LOG_READ_TIMEOUT_S = 60.0  # on another node
EXIT_LIMIT_S = 20

RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")
ChunkResultT = TypeVar("ChunkResultT")


@dataclass(frozen=True, slots=True)
class ChunkStage(Generic[RowT, ResultT, ChunkResultT]):
    """The work on one chunk, in parts that can be done for a group of rows."""

    name: str
    row_count: int
    load_rows: Callable[[], Sequence[RowT]]
    process_rows: Callable[[Sequence[RowT]], Sequence[ResultT]]  # one result per row, in order
    fail_row: Callable[[RowT, str], ResultT]  # the result of a row that crashes every process, with the reason
    finish_chunk: Callable[[Sequence[ResultT]], ChunkResultT]


def start_ledger() -> Any:
    """Start the ledger of one run as an actor on the driver's node: without its driver, a run needs no ledger."""
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(CrashLedger)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": driver_node}
    return actor.options(**options).remote(is_node_alive)


def is_node_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


class CrashIsolation:
    """One per process. `exclusive`: the process works on one chunk at a time."""

    def __init__(self, ledger: Any, stage: str, *, exclusive: bool):
        self.ledger, self.stage, self.exclusive = ledger, stage, exclusive
        self.lock = SharedExclusiveLock()
        limit_exit_time(EXIT_LIMIT_S)
        log_path = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
        runtime = ray.get_runtime_context()
        self.process = WorkerProcess(runtime.get_node_id(), os.getpid(), log_path, str(runtime.get_actor_id()))

    def open_worker(self, factory: Callable[[], ResultT]) -> ResultT | Parked:
        """Build what the process works with."""
        instructions: StepInstructions = ray.get(self.ledger.begin_start.remote(self.stage, self.process))
        if parked := build_parked(instructions):
            return parked
        try:
            worker = factory()
        except PipelineError as error:
            return Parked(f"a worker that {self.stage} cannot start: {error}", error)
        except BaseException as error:
            exit_process("this worker cannot start", error)
            raise
        self.ledger.finish_start.remote(self.process.actor_id)
        return worker

    def run_stages(
        self, stages: Sequence[ChunkStage[RowT, ResultT, ChunkResultT]], stage_name: str | None = None
    ) -> list[ChunkResultT] | Parked | None:
        """Do a task. None if the run is being stopped; nothing was done then, nor if this actor is parked."""
        steps = {(stage_name or self.stage, stage.name): stage for stage in stages}
        results: dict[StepKey, ChunkResultT] = {}
        with self.lock.hold_shared():
            row_counts = {key: stage.row_count for key, stage in steps.items()}
            instructions: list[StepInstructions] | None = ray.get(
                self.ledger.begin_steps.remote(row_counts, self.process, self.exclusive)
            )
            if instructions is None:
                return None
            for instruction in instructions:
                raise_if_refused(instruction)
            if parked := build_parked(instructions[0]):
                return parked
            isolating = {key: how for key, how in zip(steps, instructions, strict=True) if how.is_isolating}
            for key, stage in steps.items():
                if key not in isolating:
                    results[key] = stage.finish_chunk(stage.process_rows(stage.load_rows()))
            self.ledger.finish_steps.remote([*results])
        for key, how in isolating.items():
            with self.lock.hold_exclusive():
                results[key] = steps[key].finish_chunk(self.run_groups(key, how, steps[key]))
                self.ledger.finish_steps.remote([key])
        return [results[key] for key in steps]

    def run_groups(
        self,
        step_key: StepKey,
        instructions: StepInstructions,
        chunk_stage: ChunkStage[RowT, ResultT, ChunkResultT],
    ) -> list[ResultT]:
        """Process a chunk with suspects group by group. The ledger always knows which group runs."""
        self.set_active_rows(step_key, ())
        rows = chunk_stage.load_rows()
        results: dict[int, ResultT] = {}
        for group in instructions.row_groups:
            self.set_active_rows(step_key, group)
            results |= zip(group, chunk_stage.process_rows([rows[offset] for offset in group]), strict=True)
        self.set_active_rows(step_key, ())
        for offset, process in instructions.abandoned_rows.items():
            results[offset] = chunk_stage.fail_row(rows[offset], describe_crashes(process))
        return [results[offset] for offset in range(len(rows))]

    def set_active_rows(self, step_key: StepKey, row_group: RowGroup) -> None:
        ray.get(self.ledger.set_active_rows.remote(step_key, row_group, self.process))


class SharedExclusiveLock:
    """Held by many threads at once or by one alone. A thread that waits to be alone keeps newcomers out."""

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
    if reason := instructions.stop_reason:
        raise StoppedError(f"stopped: {describe_reason(reason, instructions.last_process)}")


def build_parked(instructions: StepInstructions) -> Parked | None:
    if instructions.parked_reason is None:
        return None
    reason = describe_reason(instructions.parked_reason, instructions.last_process)
    return Parked(reason, StoppedError(f"stopped: {reason}"))


def describe_reason(reason: str, last_process: WorkerProcess | None) -> str:
    return f"{reason}. {describe_last_words(last_process)}" if last_process else reason


def exit_process(what: str, error: BaseException) -> None:
    """End this process with last words. Ray starts another one, and the ledger counts the crash."""
    traceback.print_exception(error)
    os.write(2, f"vlbatch: {what}: {type(error).__name__}: {error}\n".encode())
    os._exit(ExitCode.HANG)


def limit_exit_time(seconds: int) -> None:
    """Have the kernel end this process if its exit takes longer: a native library may wait for its threads forever."""
    atexit.register(signal.alarm, seconds)


def describe_crashes(last_process: WorkerProcess) -> str:
    """Why a row was abandoned."""
    return (
        f"{MAX_CRASHES} processes died while they worked on this row and nothing else. "
        f"{describe_last_words(last_process)}. "
        "Check the row's media, or give the workers more memory, and run it again with --retry-errors"
    )


def describe_last_words(process: WorkerProcess) -> str:
    try:
        words = read_last_words(process)
    except ray.exceptions.RayError:  # the node is gone or too busy to answer
        return f"The log of the last one is {process.log_path} on its node"
    return f"The last one said: {words or 'nothing, so it was killed from outside, most likely for want of memory'}"


def read_last_words(process: WorkerProcess) -> str:
    """Read a dead process's log on its node."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        return read_crash_line(process.log_path)
    node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    task: Any = ray.remote(read_crash_line)
    words = task.options(num_cpus=0, max_retries=0, scheduling_strategy=node).remote(process.log_path)
    return str(ray.get(words, timeout=LOG_READ_TIMEOUT_S))


def read_crash_line(log_path: str) -> str:
    """The last line in which Python or this program says why the process ends."""
    try:
        with open(log_path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    reasons = [line.strip() for line in lines if line.startswith(("Fatal Python error: ", "vlbatch: "))]
    return reasons[-1].removeprefix("vlbatch: ") if reasons else ""
