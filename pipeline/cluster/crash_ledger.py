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

An actor whose processes die at every start, or one after another at work, is parked: it holds the chunks that Ray gives
it and does nothing, because its GPU may be broken. When nothing else is left to do, it gives them back undone, and the
driver runs them once more. The run stops when all actors of a stage are parked, so a larger pool bears more crashes.
Those that the pool starts with and that have not come yet, because they wait for a node, are waited for.

This module does no I/O and does not import Ray; `isolation.py` runs it as an actor on the driver's node.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_CRASHES = 3  # crashes of one row alone, of one step outside its rows, or of one actor at its start
GROUPS_PER_SPLIT = 16  # a group that crashed is split into so many
MAX_CONSECUTIVE_CRASHES = 12  # of one actor, while no group survives on it: the cause is not a row
PARKED_IDLE_S = 30.0  # nothing has run for so long: the chunks of parked actors are all that is left
PARKED_STARTING_S = 900.0  # the same while other actors start: they may load a large model, or never come

StepKey = tuple[str, str]  # the stage and the name of the part
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
    is_parked: bool = False  # hold the chunk, because the actor is parked
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


@dataclass(slots=True)
class ActorState:
    """A worker of a pool. It keeps its id when Ray restarts it in a new process."""

    stage: str
    is_ready: bool = False
    start_attempts: list[WorkerProcess] = field(default_factory=list)  # since it was last ready
    recent_crashes: set[WorkerProcess] = field(default_factory=set)  # at work, since a group last survived
    parked_reason: str | None = None  # None: it is not parked
    last_process: WorkerProcess | None = None  # the one whose crash led to parked_reason


@dataclass(frozen=True, slots=True)
class ParkedNotice:
    reason: str
    last_process: WorkerProcess | None


class CrashLedger:
    def __init__(
        self,
        is_node_alive: Callable[[str], bool] = lambda node_id: True,
        min_actors: Mapping[str, int] = MappingProxyType({}),  # by stage: how many come in any case
        clock: Callable[[], float] = time.monotonic,
    ):
        self.is_node_alive, self.min_actors, self.clock = is_node_alive, min_actors, clock
        self.open_steps: dict[StepKey, StepState] = {}
        self.actors: dict[str, ActorState] = {}  # by id
        self.notices: list[ParkedNotice] = []  # that the driver has not shown yet
        self.idle_since: float | None = None
        self.is_stopping = False

    def begin_start(self, stage: str, process: WorkerProcess) -> StepInstructions:
        """Park an actor that keeps dying while it starts; Ray would start it for ever."""
        actor = self.get_actor(stage, process)
        actor.is_ready = False
        crashes = sum(self.is_node_alive(attempt.node_id) for attempt in actor.start_attempts)
        if crashes >= MAX_CRASHES or len(actor.start_attempts) >= 2 * MAX_CRASHES:
            reason = f"{MAX_CRASHES} processes that {stage} died while they started"
            self.park_actor(actor, reason, actor.start_attempts[-1])
        if actor.parked_reason:
            return self.build_parked_instructions(actor)
        actor.start_attempts.append(process)
        return StepInstructions()

    def finish_start(self, actor_id: str) -> None:
        self.actors[actor_id].is_ready = True
        self.actors[actor_id].start_attempts.clear()

    def fail_start(self, actor_id: str, message: str) -> StepInstructions:
        """Park an actor that cannot start."""
        actor = self.actors[actor_id]
        self.park_actor(actor, f"a worker that {actor.stage} cannot start: {message}", None)
        return self.build_parked_instructions(actor)

    def check_parked(self, actor_id: str) -> StepInstructions | None:
        """What a parked actor does with its chunks: None to hold them. Else it gives them back or stops the run."""
        actor = self.actors[actor_id]
        if not self.is_idle():
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = self.clock()
        idle_s = 0.0 if self.idle_since is None else self.clock() - self.idle_since
        is_starting = self.lacks_actors(actor.stage) or any(
            not (other.is_ready or other.parked_reason) for other in self.actors.values()
        )
        is_over = idle_s >= (PARKED_STARTING_S if is_starting else PARKED_IDLE_S)
        instructions = self.build_parked_instructions(actor, wait_for_others=not is_over)
        return instructions if is_over or self.is_stopping or instructions.stop_reason else None

    def take_notices(self) -> list[ParkedNotice]:
        """The actors that were parked since the last call."""
        notices, self.notices = self.notices, []
        return notices

    def count_parked_actors(self) -> dict[str, int]:
        """By stage."""
        return dict(Counter(actor.stage for actor in self.actors.values() if actor.parked_reason))

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
        if (actor := self.get_actor(step_key[0], process)).parked_reason:
            return self.build_parked_instructions(actor)
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

    def get_actor(self, stage: str, process: WorkerProcess) -> ActorState:
        return self.actors.setdefault(process.actor_id, ActorState(stage))

    def park_actor(self, actor: ActorState, reason: str, last_process: WorkerProcess | None) -> None:
        if actor.parked_reason is None:
            actor.parked_reason, actor.last_process = reason, last_process
            self.notices.append(ParkedNotice(reason, last_process))

    def build_parked_instructions(self, actor: ActorState, *, wait_for_others: bool = True) -> StepInstructions:
        """Stop the run if no other actor can do the work."""
        is_alone = all(other.parked_reason for other in self.actors.values() if other.stage == actor.stage)
        if is_alone and not (wait_for_others and self.lacks_actors(actor.stage)):
            return StepInstructions(stop_reason=actor.parked_reason, last_process=actor.last_process)
        return StepInstructions(is_parked=True)

    def lacks_actors(self, stage: str) -> bool:
        """Some of those that the pool starts with wait for a node."""
        return sum(actor.stage == stage for actor in self.actors.values()) < self.min_actors.get(stage, 1)

    def record_survival(self, stage: str, state: StepState) -> None:
        if state.active_rows and state.process:
            self.get_actor(stage, state.process).recent_crashes.clear()

    def record_crash(self, stage: str, state: StepState, process: WorkerProcess) -> None:
        if not self.is_node_alive(process.node_id):
            state.lost_nodes += 1
            if state.lost_nodes < MAX_CRASHES:
                return
        state.record_crash(process)
        actor = self.get_actor(stage, process)
        actor.recent_crashes.add(process)
        if len(actor.recent_crashes) >= MAX_CONSECUTIVE_CRASHES:
            reason = (
                f"{MAX_CONSECUTIVE_CRASHES} processes that {stage} died one after another and finished nothing in "
                "between, so the cause is not a row"
            )
            self.park_actor(actor, reason, process)

    def find_stop_reason(self, step_key: StepKey, state: StepState) -> str | None:
        stage, part_name = step_key
        if state.crashes_outside_rows >= MAX_CRASHES:
            return (
                f"{MAX_CRASHES} processes that {stage} died while they read or committed chunk {part_name}, "
                "not while they worked on its rows"
            )
        return None
