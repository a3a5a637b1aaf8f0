"""Finds the rows that crash worker processes: it records which rows each process works on and isolates suspects.

Ray hands the work of a dead process to the next one and gives no reason. So a worker reports the rows that it is about
to work on. A step (a stage of a chunk) has these states:

    running     a process works on some or all of its rows
    crashed     the step begins again although it has not finished: its active rows become suspects
    isolating   suspects run in small groups, each alone in its process; a crash splits the group again
    finished    the ledger forgets the step

A row that crashes MAX_CRASHES processes while it is alone is abandoned. Every crash makes a group smaller or a count
larger, so retries end. A lost node blames no row until a chunk has lost several: where a container limits memory, a row
that takes too much ends the whole node.

An actor whose processes die at every start, or one after another at work, is parked: it gives the chunks that it has
back undone and gets no more, because its GPU may be broken. The run stops when all actors of a stage are parked, so a
larger pool bears more crashes.

This module does no I/O and does not import Ray; `isolation.py` runs it as an actor on the driver's node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

MAX_CRASHES = 3  # crashes of one row alone, of one step outside its rows, or of one actor at its start
GROUPS_PER_SPLIT = 16  # a group that crashed is split into so many
MAX_CONSECUTIVE_CRASHES = 12  # of one actor, while no group survives on it: the cause is not a row

COMMIT_STAGE = "commit"  # of slices that are answered; a run that is being stopped does it, too

StepKey = tuple[str, str]  # the stage and the name of the chunk or slice
RowGroup = tuple[int, ...]  # offsets of rows in a chunk


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    node_id: str
    pid: int
    log_path: str
    actor_id: str


@dataclass(frozen=True, slots=True)
class StepInstructions:
    """How to run a step. Without groups and abandoned rows, all rows run at once, beside those of other chunks."""

    row_groups: tuple[RowGroup, ...] = ()  # run one after another, with nothing else in the process
    abandoned_rows: Mapping[int, WorkerProcess] = field(default_factory=dict)  # with the last process that each crashed
    parked_reason: str | None = None  # the actor is parked
    stop_reason: str | None = None  # the run cannot go on
    last_process: WorkerProcess | None = None  # the process whose crash led to either

    @property
    def is_isolating(self) -> bool:
        return bool(self.row_groups or self.abandoned_rows)


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


@dataclass(slots=True)
class ActorState:
    """A worker of a pool. It keeps its id when Ray restarts it in a new process."""

    start_attempts: list[WorkerProcess] = field(default_factory=list)  # since it was last ready
    recent_crashes: set[WorkerProcess] = field(default_factory=set)  # at work, since a group last survived
    parked_reason: str | None = None  # None: it is not parked
    last_process: WorkerProcess | None = None  # the one whose crash led to parked_reason

    def park(self, reason: str, last_process: WorkerProcess) -> None:
        if self.parked_reason is None:
            self.parked_reason, self.last_process = reason, last_process


class CrashLedger:
    def __init__(self, is_node_alive: Callable[[str], bool] = lambda node_id: True):
        self.is_node_alive = is_node_alive
        self.open_steps: dict[StepKey, StepState] = {}
        self.actors: dict[str, ActorState] = defaultdict(ActorState)  # by id
        self.is_stopping = False

    def begin_start(self, stage: str, process: WorkerProcess) -> StepInstructions:
        """Park an actor that keeps dying while it starts; Ray would start it for ever."""
        actor = self.actors[process.actor_id]
        crashes = sum(self.is_node_alive(attempt.node_id) for attempt in actor.start_attempts)
        if crashes >= MAX_CRASHES or len(actor.start_attempts) >= 2 * MAX_CRASHES:
            actor.park(f"{MAX_CRASHES} processes that {stage} died while they started", actor.start_attempts[-1])
        actor.start_attempts.append(process)
        return StepInstructions(parked_reason=actor.parked_reason, last_process=actor.last_process)

    def finish_start(self, actor_id: str) -> None:
        self.actors[actor_id].start_attempts.clear()

    def begin_steps(
        self, row_counts: Mapping[StepKey, int], process: WorkerProcess, exclusive: bool
    ) -> list[StepInstructions] | None:
        """How to run the steps of a task, or None once the run is being stopped. `exclusive`: of one task at a time.

        With instructions for all rows at once, the ledger regards all rows as active from now on.
        """
        states = {key: self.open_steps.setdefault(key, StepState(row_count)) for key, row_count in row_counts.items()}
        crashed_processes = {key: self.end_crashed_step(key[0], state) for key, state in states.items()}
        if self.is_stopping and any(stage != COMMIT_STAGE for stage, _ in states):
            for key in states:
                del self.open_steps[key]
            return None
        if (actor := self.actors[process.actor_id]).parked_reason:
            return [StepInstructions(parked_reason=actor.parked_reason, last_process=actor.last_process)]
        is_alone = exclusive and len(states) == 1
        return [self.begin_step(key, state, process, is_alone, crashed_processes[key]) for key, state in states.items()]

    def end_crashed_step(self, stage: str, state: StepState) -> WorkerProcess | None:
        """The process that worked on the step and crashed, if any."""
        if process := state.process:
            self.record_crash(stage, state, process)
        state.process, state.active_rows = None, ()
        return process

    def begin_step(
        self,
        step_key: StepKey,
        state: StepState,
        process: WorkerProcess,
        is_alone: bool,
        crashed_process: WorkerProcess | None,
    ) -> StepInstructions:
        if reason := self.find_stop_reason(step_key, state):
            return StepInstructions(stop_reason=reason, last_process=crashed_process)
        if state.needs_isolation:
            return state.build_isolation_instructions()
        state.process, state.active_rows, state.is_exclusive = process, tuple(range(state.row_count)), is_alone
        return StepInstructions()

    def set_active_rows(self, step_key: StepKey, row_group: RowGroup, process: WorkerProcess) -> None:
        """The process has finished its last group and now works on these rows alone; on none: it reads or commits."""
        if state := self.open_steps.get(step_key):  # a process that was taken for dead may have finished the step
            self.record_survival(state)
            state.process, state.active_rows, state.is_exclusive = process, row_group, True

    def finish_steps(self, step_keys: Sequence[StepKey]) -> None:
        for step_key in step_keys:
            if state := self.open_steps.pop(step_key, None):
                self.record_survival(state)

    def stop_steps(self) -> None:
        self.is_stopping = True

    def record_survival(self, state: StepState) -> None:
        if state.active_rows and state.process:
            self.actors[state.process.actor_id].recent_crashes.clear()

    def record_crash(self, stage: str, state: StepState, process: WorkerProcess) -> None:
        if not self.is_node_alive(process.node_id):
            state.lost_nodes += 1
            if state.lost_nodes < MAX_CRASHES:
                return
        state.record_crash(process)
        actor = self.actors[process.actor_id]
        actor.recent_crashes.add(process)
        if len(actor.recent_crashes) >= MAX_CONSECUTIVE_CRASHES:
            reason = (
                f"{MAX_CONSECUTIVE_CRASHES} processes that {stage} died one after another and finished nothing in "
                "between, so the cause is not a row"
            )
            actor.park(reason, process)

    def find_stop_reason(self, step_key: StepKey, state: StepState) -> str | None:
        stage, part_name = step_key
        if state.crashes_outside_rows >= MAX_CRASHES:
            return (
                f"{MAX_CRASHES} processes that {stage} died while they read or committed chunk {part_name}, "
                "not while they worked on its rows"
            )
        return None
