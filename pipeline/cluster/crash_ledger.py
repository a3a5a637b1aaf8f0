"""Who works on which rows -> the rows that end processes, kept apart until the one at fault is known.

A process that dies tells nobody why, and Ray hands its work to the next one for ever. So a worker says here which
rows it is about to work on. A step (stage, chunk) that is begun again though it never ended was interrupted: the rows
it was at are suspects, run in smaller groups that have the process to themselves, and a row that ended DEATHS
processes alone is given up. Each death makes a group smaller or a count larger, so nothing is retried for ever, and
only a row that was alone is given up. A node that goes away is nobody's fault, until a chunk has taken several with
it: where memory is a container's, what takes too much of it ends the node. No I/O and no Ray: isolate.py brings it
to the workers, as an actor on the driver's node that outlives them. It holds open steps only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MAX_CRASHES = 3  # processes that a row may end by itself, and that a step may lose while none of its rows was worked on
GROUPS_PER_SPLIT = 16  # a group that was interrupted is tried again in so many parts
MAX_CONSECUTIVE_CRASHES = 12  # processes lost one after another, with no group survived in between: it is not the rows

StepKey = tuple[str, str]  # the stage, and the key of the chunk
RowGroup = tuple[int, ...]  # places of rows in a chunk


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process, and where it wrote its last words."""

    node_id: str
    pid: int
    log_path: str


@dataclass(frozen=True, slots=True)
class StepInstructions:
    """How to go about a step. Without groups all rows go at once, beside those of other chunks."""

    row_groups: tuple[RowGroup, ...] = ()  # one after another, with nothing else in the process
    abandoned_rows: Mapping[int, WorkerProcess] = field(
        default_factory=dict
    )  # rows, and the last process each has ended
    stop_reason: str | None = None  # why there is no point in going on
    last_process: WorkerProcess | None = None  # the process whose death made it so


@dataclass(slots=True)
class StepState:
    """What is known of a step that has not ended."""

    row_count: int
    process: WorkerProcess | None = None  # who works on it
    active_rows: RowGroup = ()  # on these rows
    is_exclusive: bool = False  # and on no others
    max_group_sizes: dict[int, int] = field(default_factory=dict)  # suspect -> the largest group it may be in
    crash_counts: Counter[int] = field(default_factory=Counter)  # of processes in which a row was alone
    last_processes: dict[int, WorkerProcess] = field(default_factory=dict)
    lost_nodes: int = 0  # that went away with it
    crashes_outside_rows: int = 0  # deaths in which no row was worked on: reading or committing the chunk


class CrashLedger:
    def __init__(self, is_node_alive: Callable[[str], bool] = lambda node: True):
        self.is_node_alive = is_node_alive
        self.open_steps: dict[StepKey, StepState] = {}
        self.lost_processes: dict[str, set[WorkerProcess]] = defaultdict(set)  # by stage, since a group last survived
        self.start_attempts: dict[str, list[WorkerProcess]] = defaultdict(list)  # of an actor, since it was last ready
        self.is_stopping = False

    def begin_start(self, stage: str, actor_id: str, process: WorkerProcess) -> StepInstructions:
        """An actor that dies while it starts would be started for ever."""
        before = list(self.start_attempts[actor_id])
        self.start_attempts[actor_id].append(process)
        here = sum(self.is_node_alive(each.node_id) for each in before)
        if here < MAX_CRASHES and len(before) < 2 * MAX_CRASHES:
            return StepInstructions()
        return StepInstructions(
            stop_reason=f"{MAX_CRASHES} processes that {stage} died while they started", last_process=before[-1]
        )

    def finish_start(self, actor_id: str) -> None:
        del self.start_attempts[actor_id]

    def begin_step(
        self, step_key: StepKey, row_count: int, process: WorkerProcess, exclusive: bool
    ) -> StepInstructions | None:
        """None: nothing is begun any more. An order without groups counts as told: its rows are in danger from now.

        `sole`: the process does nothing else meanwhile.
        """
        tries = self.open_steps.setdefault(step_key, StepState(row_count))
        last = tries.process
        if last:
            self.record_interruption(step_key[0], tries, last)
        tries.process, tries.active_rows = None, ()
        if self.is_stopping:
            del self.open_steps[step_key]
            return None
        if refusal := self.find_stop_reason(step_key, tries):
            return StepInstructions(stop_reason=refusal, last_process=last)
        if tries.max_group_sizes or tries.crashes_outside_rows:
            return StepInstructions(
                build_row_groups(tries),
                {
                    row: tries.last_processes[row]
                    for row in tries.last_processes
                    if tries.crash_counts[row] >= MAX_CRASHES
                },
            )
        tries.process, tries.active_rows, tries.is_exclusive = process, tuple(range(row_count)), exclusive
        return StepInstructions()

    def set_active_rows(self, step_key: StepKey, row_group: RowGroup, process: WorkerProcess) -> None:
        """From now on `worker` works on these rows of a step alone; on none: it reads or commits the chunk."""
        if tries := self.open_steps.get(step_key):  # or another attempt, taken for dead, has ended it meanwhile
            self.record_survival(step_key[0], tries)
            tries.process, tries.active_rows, tries.is_exclusive = process, row_group, True

    def finish_step(self, step_key: StepKey) -> None:
        if tries := self.open_steps.pop(step_key, None):
            self.record_survival(step_key[0], tries)

    def stop_steps(self) -> None:
        self.is_stopping = True

    def is_idle(self) -> bool:
        return not any(tries.process for tries in self.open_steps.values())

    def count_rows_in_flight(self) -> dict[str, int]:
        """Rows that are being worked on, by stage."""
        found: Counter[str] = Counter()
        for (stage, _), tries in self.open_steps.items():
            found[stage] += tries.row_count if tries.process else 0
        return dict(found)

    def record_survival(self, stage: str, state: StepState) -> None:
        if state.active_rows:
            self.lost_processes[stage].clear()

    def record_interruption(self, stage: str, state: StepState, process: WorkerProcess) -> None:
        if not self.is_node_alive(process.node_id):
            state.lost_nodes += 1
            if state.lost_nodes < MAX_CRASHES:
                return
        self.lost_processes[stage].add(process)
        size = len(state.active_rows)
        state.crashes_outside_rows += not size
        for row in state.active_rows:
            if state.is_exclusive and size == 1:
                state.crash_counts[row] += 1
                state.last_processes[row] = process
            most = max(1, size // GROUPS_PER_SPLIT)
            state.max_group_sizes[row] = min(most, state.max_group_sizes.get(row, most))

    def find_stop_reason(self, step_key: StepKey, state: StepState) -> str | None:
        stage, key = step_key
        if len(self.lost_processes[stage]) >= MAX_CONSECUTIVE_CRASHES:
            return (
                f"{MAX_CONSECUTIVE_CRASHES} processes that {stage} died one after another and got nothing done in between, "
                "so it is not the rows"
            )
        if state.crashes_outside_rows >= MAX_CRASHES:
            return f"{MAX_CRASHES} processes that {stage} died while they read or committed chunk {key}, at none of its rows"
        return None


def build_row_groups(state: StepState) -> tuple[RowGroup, ...]:
    """Smallest first: what is likeliest to end the process does so before much work is lost with it."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for row in range(state.row_count):
        if state.crash_counts[row] < MAX_CRASHES:
            by_size[state.max_group_sizes.get(row, state.row_count)].append(row)
    return tuple(
        tuple(rows[first : first + size])
        for size, rows in sorted(by_size.items())
        for first in range(0, len(rows), size)
    )
