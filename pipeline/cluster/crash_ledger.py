"""Finds the rows that crash worker processes: it records which rows each process works on and isolates suspects.

Ray hands the work of a dead process to the next one and gives no reason. So a worker reports the rows that it is about
to work on. A step (a stage of a chunk) has these states:

    running     a process works on some or all of its rows
    crashed     the step begins again although it has not finished: its active rows become suspects
    isolating   suspects run in small groups, each alone in its process; a crash splits the group again
    finished    the ledger forgets the step

A row that crashes MAX_CRASHES processes while it is alone is abandoned. Every crash makes a group smaller or a count
larger, so retries end. A lost node blames no row until a chunk has lost several: where a container limits memory, a row
that takes too much ends the whole node. This module does no I/O and does not import Ray; `isolation.py` runs it as an
actor on the driver's node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MAX_CRASHES = 3  # crashes of one row alone, of one step outside its rows, or of one actor at its start
GROUPS_PER_SPLIT = 16  # a group that crashed is split into so many
MAX_CONSECUTIVE_CRASHES = 12  # of a stage, while no group survives: the cause is not a row

StepKey = tuple[str, str]  # the stage and the name of the part
RowGroup = tuple[int, ...]  # offsets of rows in a chunk


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    node_id: str
    pid: int
    log_path: str


@dataclass(frozen=True, slots=True)
class StepInstructions:
    """How to run a step. Without groups and abandoned rows, all rows run at once, beside those of other chunks."""

    row_groups: tuple[RowGroup, ...] = ()  # run one after another, with nothing else in the process
    abandoned_rows: Mapping[int, WorkerProcess] = field(default_factory=dict)  # with the last process that each crashed
    stop_reason: str | None = None  # the run cannot go on
    last_process: WorkerProcess | None = None  # the process whose crash led to stop_reason


@dataclass(slots=True)
class StepState:
    """A step that has not finished."""

    row_count: int
    process: WorkerProcess | None = None  # None: the step waits to begin again
    active_rows: RowGroup = ()  # the process works on these rows; none while it reads or commits the chunk
    is_exclusive: bool = False  # the process works on no other rows
    max_group_sizes: dict[int, int] = field(default_factory=dict)  # by suspect row
    crash_counts: Counter[int] = field(default_factory=Counter)  # by row: crashes while it was alone
    last_processes: dict[int, WorkerProcess] = field(default_factory=dict)  # by row: the last one that it crashed alone
    lost_nodes: int = 0
    crashes_outside_rows: int = 0

    def record_crash(self, process: WorkerProcess) -> None:
        """The active rows become suspects: their groups get smaller, and a row that was alone is charged."""
        if not self.active_rows:
            self.crashes_outside_rows += 1
            return
        group_size = max(1, len(self.active_rows) // GROUPS_PER_SPLIT)
        for row in self.active_rows:
            self.max_group_sizes[row] = min(group_size, self.max_group_sizes.get(row, group_size))
        if self.is_exclusive and len(self.active_rows) == 1:
            (row,) = self.active_rows
            self.crash_counts[row] += 1
            self.last_processes[row] = process

    @property
    def needs_isolation(self) -> bool:
        return bool(self.max_group_sizes or self.crashes_outside_rows)

    def is_abandoned(self, row: int) -> bool:
        return self.crash_counts[row] >= MAX_CRASHES

    def build_isolation_instructions(self) -> StepInstructions:
        """Smallest groups first: they are the likeliest to crash, and then little other work is lost."""
        rows_by_size: dict[int, list[int]] = defaultdict(list)
        for row in range(self.row_count):
            if not self.is_abandoned(row):
                rows_by_size[self.max_group_sizes.get(row, self.row_count)].append(row)
        row_groups = tuple(
            tuple(rows[first : first + size])
            for size, rows in sorted(rows_by_size.items())
            for first in range(0, len(rows), size)
        )
        abandoned = {row: process for row, process in self.last_processes.items() if self.is_abandoned(row)}
        return StepInstructions(row_groups, abandoned)


class CrashLedger:
    def __init__(self, is_node_alive: Callable[[str], bool] = lambda node_id: True):
        self.is_node_alive = is_node_alive
        self.open_steps: dict[StepKey, StepState] = {}
        self.recent_crashes: dict[str, set[WorkerProcess]] = defaultdict(set)  # by stage, since a group last survived
        self.start_attempts: dict[str, list[WorkerProcess]] = defaultdict(list)  # by actor, since it was last ready
        self.is_stopping = False

    def begin_start(self, stage: str, actor_id: str, process: WorkerProcess) -> StepInstructions:
        """Refuse an actor that keeps dying while it starts; Ray would start it for ever."""
        attempts = self.start_attempts[actor_id]
        crashes = sum(self.is_node_alive(attempt.node_id) for attempt in attempts)
        if crashes >= MAX_CRASHES or len(attempts) >= 2 * MAX_CRASHES:
            reason = f"{MAX_CRASHES} processes that {stage} died while they started"
            return StepInstructions(stop_reason=reason, last_process=attempts[-1])
        attempts.append(process)
        return StepInstructions()

    def finish_start(self, actor_id: str) -> None:
        self.start_attempts.pop(actor_id, None)

    def begin_step(
        self, step_key: StepKey, row_count: int, process: WorkerProcess, exclusive: bool
    ) -> StepInstructions | None:
        """How to run the step, or None once the run is being stopped. `exclusive`: the process does nothing else.

        With instructions for all rows at once, the ledger regards all rows as active from now on.
        """
        state = self.open_steps.setdefault(step_key, StepState(row_count))
        crashed_process = state.process
        if crashed_process:
            self.record_crash(step_key[0], state, crashed_process)
        state.process, state.active_rows = None, ()
        if self.is_stopping:
            del self.open_steps[step_key]
            return None
        if reason := self.find_stop_reason(step_key, state):
            return StepInstructions(stop_reason=reason, last_process=crashed_process)
        if state.needs_isolation:
            return state.build_isolation_instructions()
        state.process, state.active_rows, state.is_exclusive = process, tuple(range(row_count)), exclusive
        return StepInstructions()

    def set_active_rows(self, step_key: StepKey, row_group: RowGroup, process: WorkerProcess) -> None:
        """The process has finished its last group and now works on these rows alone; on none: it reads or commits."""
        if state := self.open_steps.get(step_key):  # a process that was taken for dead may have finished the step
            self.record_survival(step_key[0], state)
            state.process, state.active_rows, state.is_exclusive = process, row_group, True

    def finish_step(self, step_key: StepKey) -> None:
        if state := self.open_steps.pop(step_key, None):
            self.record_survival(step_key[0], state)

    def stop_steps(self) -> None:
        self.is_stopping = True

    def is_idle(self) -> bool:
        return not any(state.process for state in self.open_steps.values())

    def count_rows_in_flight(self) -> dict[str, int]:
        """The rows of all running steps, by stage."""
        counts: Counter[str] = Counter()
        for (stage, _), state in self.open_steps.items():
            counts[stage] += state.row_count if state.process else 0
        return dict(counts)

    def record_survival(self, stage: str, state: StepState) -> None:
        if state.active_rows:
            self.recent_crashes[stage].clear()

    def record_crash(self, stage: str, state: StepState, process: WorkerProcess) -> None:
        if not self.is_node_alive(process.node_id):
            state.lost_nodes += 1
            if state.lost_nodes < MAX_CRASHES:
                return
        self.recent_crashes[stage].add(process)
        state.record_crash(process)

    def find_stop_reason(self, step_key: StepKey, state: StepState) -> str | None:
        stage, part_name = step_key
        if len(self.recent_crashes[stage]) >= MAX_CONSECUTIVE_CRASHES:
            return (
                f"{MAX_CONSECUTIVE_CRASHES} processes that {stage} died one after another and finished nothing in "
                "between, so the cause is not a row"
            )
        if state.crashes_outside_rows >= MAX_CRASHES:
            return (
                f"{MAX_CRASHES} processes that {stage} died while they read or committed chunk {part_name}, "
                "not while they worked on its rows"
            )
        return None
