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

DEATHS = 3  # processes that a row may end by itself, and that a step may lose while none of its rows was worked on
SPLIT = 16  # a group that was interrupted is tried again in so many parts
HOPELESS = 12  # processes lost one after another, with no group survived in between: it is not the rows

Step = tuple[str, str]  # the stage, and the key of the chunk
Group = tuple[int, ...]  # places of rows in a chunk


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, and where it wrote its last words."""

    node: str
    process: int
    log: str


@dataclass(frozen=True, slots=True)
class Order:
    """How to go about a step. Without groups all rows go at once, beside those of other chunks."""

    groups: tuple[Group, ...] = ()  # one after another, with nothing else in the process
    given_up: Mapping[int, Worker] = field(default_factory=dict)  # rows, and the last process each has ended
    refusal: str | None = None  # why there is no point in going on
    last: Worker | None = None  # the process whose death made it so


@dataclass(slots=True)
class Tries:
    """What is known of a step that has not ended."""

    rows: int
    worker: Worker | None = None  # who works on it
    group: Group = ()  # on these rows
    alone: bool = False  # and on no others
    most: dict[int, int] = field(default_factory=dict)  # suspect -> the largest group it may be in
    deaths: Counter[int] = field(default_factory=Counter)  # of processes in which a row was alone
    last: dict[int, Worker] = field(default_factory=dict)
    nodes: int = 0  # that went away with it
    in_vain: int = 0  # deaths in which no row was worked on: reading or committing the chunk


class Ledger:
    def __init__(self, alive: Callable[[str], bool] = lambda node: True):
        self.alive = alive
        self.steps: dict[Step, Tries] = {}
        self.lost: dict[str, set[Worker]] = defaultdict(set)  # by stage, since a group last survived
        self.starts: dict[str, list[Worker]] = defaultdict(list)  # of an actor, since it was last ready
        self.stopping = False

    def starting(self, stage: str, actor: str, worker: Worker) -> Order:
        """An actor that dies while it starts would be started for ever."""
        before = list(self.starts[actor])
        self.starts[actor].append(worker)
        here = sum(self.alive(each.node) for each in before)
        if here < DEATHS and len(before) < 2 * DEATHS:
            return Order()
        return Order(refusal=f"{DEATHS} processes that {stage} died while they started", last=before[-1])

    def ready(self, actor: str) -> None:
        del self.starts[actor]

    def begin(self, step: Step, rows: int, worker: Worker, sole: bool) -> Order | None:
        """None: nothing is begun any more. An order without groups counts as told: its rows are in danger from now.

        `sole`: the process does nothing else meanwhile.
        """
        tries = self.steps.setdefault(step, Tries(rows))
        last = tries.worker
        if last:
            self.interrupted(step[0], tries, last)
        tries.worker, tries.group = None, ()
        if self.stopping:
            del self.steps[step]
            return None
        if refusal := self.refusal(step, tries):
            return Order(refusal=refusal, last=last)
        if tries.most or tries.in_vain:
            return Order(groups(tries), {row: tries.last[row] for row in tries.last if tries.deaths[row] >= DEATHS})
        tries.worker, tries.group, tries.alone = worker, tuple(range(rows)), sole
        return Order()

    def danger(self, step: Step, group: Group, worker: Worker) -> None:
        """From now on `worker` works on these rows of a step alone; on none: it reads or commits the chunk."""
        if tries := self.steps.get(step):  # or another attempt, taken for dead, has ended it meanwhile
            self.survived(step[0], tries)
            tries.worker, tries.group, tries.alone = worker, group, True

    def done(self, step: Step) -> None:
        if tries := self.steps.pop(step, None):
            self.survived(step[0], tries)

    def stop(self) -> None:
        self.stopping = True

    def idle(self) -> bool:
        return not any(tries.worker for tries in self.steps.values())

    def under_way(self) -> dict[str, int]:
        """Rows that are being worked on, by stage."""
        found: Counter[str] = Counter()
        for (stage, _), tries in self.steps.items():
            found[stage] += tries.rows if tries.worker else 0
        return dict(found)

    def survived(self, stage: str, tries: Tries) -> None:
        if tries.group:
            self.lost[stage].clear()

    def interrupted(self, stage: str, tries: Tries, worker: Worker) -> None:
        if not self.alive(worker.node):
            tries.nodes += 1
            if tries.nodes < DEATHS:
                return
        self.lost[stage].add(worker)
        size = len(tries.group)
        tries.in_vain += not size
        for row in tries.group:
            if tries.alone and size == 1:
                tries.deaths[row] += 1
                tries.last[row] = worker
            most = max(1, size // SPLIT)
            tries.most[row] = min(most, tries.most.get(row, most))

    def refusal(self, step: Step, tries: Tries) -> str | None:
        stage, key = step
        if len(self.lost[stage]) >= HOPELESS:
            return (
                f"{HOPELESS} processes that {stage} died one after another and got nothing done in between, "
                "so it is not the rows"
            )
        if tries.in_vain >= DEATHS:
            return f"{DEATHS} processes that {stage} died while they read or committed chunk {key}, at none of its rows"
        return None


def groups(tries: Tries) -> tuple[Group, ...]:
    """Smallest first: what is likeliest to end the process does so before much work is lost with it."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for row in range(tries.rows):
        if tries.deaths[row] < DEATHS:
            by_size[tries.most.get(row, tries.rows)].append(row)
    return tuple(
        tuple(rows[first : first + size])
        for size, rows in sorted(by_size.items())
        for first in range(0, len(rows), size)
    )
