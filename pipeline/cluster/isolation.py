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

from pipeline.cluster.crash_ledger import DEATHS, Ledger, Order, Worker
from pipeline.errors import PipelineError, StoppedError

LOG_BYTES = 64 * 2**10
PATIENCE_S = 60.0  # for the last words of a process on another node

Row = TypeVar("Row")
Result = TypeVar("Result")
Whole = TypeVar("Whole")


@dataclass(frozen=True, slots=True)
class Stage(Generic[Row, Result, Whole]):
    """What is done with one chunk, in the four parts that may have to be done apart."""

    load: Callable[[], Sequence[Row]]
    work: Callable[[Sequence[Row]], Sequence[Result]]  # a result for each row, in order
    give_up: Callable[[Row, str], Result]  # of a row that ends every process; why, in a sentence
    finish: Callable[[Sequence[Result]], Whole]


def open_ledger() -> Any:
    """The ledger of one run: an actor where the driver is, because without a driver nobody needs it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Ledger)
    lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return actor.options(**lasting, scheduling_strategy=here).remote(alive)


def alive(node: str) -> bool:
    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())


class Isolation:
    """Open once per process. `sole`: it works on one chunk at a time."""

    def __init__(self, ledger: Any, stage: str, *, sole: bool):
        self.ledger, self.stage, self.sole = ledger, stage, sole
        self.turns = Turns()
        log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
        here = ray.get_runtime_context()
        self.actor = here.get_actor_id()
        self.me = Worker(here.get_node_id(), os.getpid(), log)

    def open(self, make: Callable[[], Result]) -> Result | PipelineError:
        """What the process works with, or why it cannot work."""
        order = ray.get(self.ledger.starting.remote(self.stage, self.actor, self.me))
        try:
            refuse(order)
            return make()
        except PipelineError as error:
            return error
        finally:
            self.ledger.ready.remote(self.actor)

    def run(self, key: str, rows: int, do: Stage[Row, Result, Whole]) -> Whole | None:
        """None: the run is being stopped, and nothing was begun."""
        step = self.stage, key
        with self.turns.shared():
            order = ray.get(self.ledger.begin.remote(step, rows, self.me, self.sole))
            if order is None:
                return None
            refuse(order)
            if not (order.groups or order.given_up):
                results = do.work(do.load())
                self.ledger.danger.remote(step, (), self.me)
                return self.end(step, do, results)
        with self.turns.alone():
            self.tell(step, ())
            loaded, found = do.load(), dict[int, Result]()
            for group in order.groups:
                self.tell(step, group)
                found |= zip(group, do.work([loaded[row] for row in group]), strict=True)
            self.tell(step, ())
            found |= {row: do.give_up(loaded[row], obituary(last)) for row, last in order.given_up.items()}
            return self.end(step, do, [found[row] for row in range(rows)])

    def tell(self, step: tuple[str, str], group: tuple[int, ...]) -> None:
        ray.get(self.ledger.danger.remote(step, group, self.me))

    def end(self, step: tuple[str, str], do: Stage[Row, Result, Whole], results: Sequence[Result]) -> Whole:
        whole = do.finish(results)
        self.ledger.done.remote(step)
        return whole


class Turns:
    """Many share, or one is alone; who wants to be alone waits for no newcomers."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.sharing = self.waiting = 0
        self.taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not (self.taken or self.waiting))
            self.sharing += 1
        try:
            yield
        finally:
            with self.changed:
                self.sharing -= 1
                self.changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: not (self.taken or self.sharing))
            self.waiting -= 1
            self.taken = True
        try:
            yield
        finally:
            with self.changed:
                self.taken = False
                self.changed.notify_all()


def refuse(order: Order) -> None:
    if order.refusal:
        raise StoppedError(f"stopped: {order.refusal}{f'. {said(order.last)}' if order.last else ''}")


def obituary(last: Worker) -> str:
    """How a row ended its processes, for people."""
    return (
        f"{DEATHS} processes died while they worked on this row and nothing else. {said(last)}. "
        "Look at what the row asks, or give a worker more memory, and drive it again with --retry-errors"
    )


def said(worker: Worker) -> str:
    try:
        words = last_words(worker)
    except ray.exceptions.RayError:  # its node is gone, or too busy to answer
        return f"What the last one said went to {worker.log} on its node"
    return f"The last one said: {words or 'nothing, so it was killed from outside, most likely for want of memory'}"


def last_words(worker: Worker) -> str:
    """What a process wrote as it died, read on its node."""
    if worker.node == ray.get_runtime_context().get_node_id():
        return tail(worker.log)
    there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
    read: Any = ray.remote(tail)
    words = read.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(worker.log)
    return str(ray.get(words, timeout=PATIENCE_S))


def tail(log: str) -> str:
    """The line in which Python, or we, say why the process ends."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    why = [line.strip() for line in lines if line.startswith(("Fatal Python error: ", "vlbatch: "))]
    return why[-1].removeprefix("vlbatch: ") if why else ""
