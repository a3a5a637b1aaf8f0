"""The actors of one stage: how many there are, and which one gets the next task. It knows nothing of Ray.

A pool grows while more work waits than its actors take, up to its largest size: by as many actors as will work longer
than they take to start. It shrinks only when its input has ended, because loading a model takes minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipeline.errors import PipelineError

PARKED_WAIT_S = 900.0  # for actors that start while all others are parked: they may load a large model, or never come
MAX_GROWTH = 8  # new actors for each one that has started, which has shown that they can

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class FinishedTask(Generic[ValueT]):
    value: ValueT
    seconds: float  # at the actor


@dataclass(frozen=True, slots=True)
class Parked:
    """Why an actor is set aside, and the error that stops the run if no other one is left."""

    reason: str
    error: PipelineError


@dataclass(eq=False, slots=True)
class PoolActor:
    handle: Any = None  # None: it was given up
    load: int = 0  # tasks that it has
    created_at: float = field(default_factory=time.monotonic)


class ActorPool:
    def __init__(self, start_actor: Callable[[PoolActor], Any], max_size: int | None, tasks_per_actor: int):
        self.start_actor = start_actor  # returns the handle; the caller calls `set_ready` or `park` when it has started
        self.max_size, self.tasks_per_actor = max_size, tasks_per_actor
        self.starting: dict[PoolActor, None] = {}
        self.ready_by_load: list[dict[PoolActor, None]] = [{} for _ in range(tasks_per_actor + 1)]
        self.parked: dict[PoolActor, Parked] = {}  # their handles are kept, so that no other actor gets a broken GPU
        self.parked_at = 0.0
        self.start_s = 0.0  # that the newest actor took to start
        self.tasks_in_flight = self.rows_in_flight = 0
        self.has_released = False

    @property
    def ready_count(self) -> int:
        return sum(map(len, self.ready_by_load))

    def add_actors(self, count: int) -> None:
        self.has_released = False
        for _ in range(count):
            actor = PoolActor()
            self.starting[actor] = None
            actor.handle = self.start_actor(actor)

    def set_ready(self, actor: PoolActor) -> None:
        del self.starting[actor]
        self.ready_by_load[0][actor] = None
        self.start_s = time.monotonic() - actor.created_at

    def pick_actor(self) -> PoolActor | None:
        """The one with the fewest tasks, or None if all have enough."""
        for actors in self.ready_by_load[: self.tasks_per_actor]:
            if actors:
                return next(iter(actors))
        return None

    def count_free_slots(self) -> int:
        """The tasks that actors could take, those that start included."""
        free = sum((self.tasks_per_actor - load) * len(actors) for load, actors in enumerate(self.ready_by_load))
        return free + self.tasks_per_actor * len(self.starting)

    def change_load(self, actor: PoolActor, tasks: int, rows: int) -> None:
        self.tasks_in_flight += tasks
        self.rows_in_flight += rows
        if actor not in self.parked:
            del self.ready_by_load[actor.load][actor]
            self.ready_by_load[actor.load + tasks][actor] = None
        actor.load += tasks

    def park(self, actor: PoolActor, parked: Parked) -> bool:
        """Whether it was not parked before."""
        if actor in self.parked:
            return False
        self.starting.pop(actor, None)
        self.ready_by_load[actor.load].pop(actor, None)
        self.parked[actor], self.parked_at = parked, time.monotonic()
        return True

    def raise_if_unusable(self) -> None:
        """The run stops when all actors are parked, so a larger pool bears more of them."""
        if not self.parked or self.ready_count or self.has_released:
            return
        if not self.starting or time.monotonic() - self.parked_at > PARKED_WAIT_S:
            raise [*self.parked.values()][-1].error

    def grow(self, waiting_tasks: int, work_s: float = 0.0) -> None:
        """Start more actors if all have enough to do. `work_s` is how long one actor would take for all that is left;
        while that is unknown, the pool doubles whenever all its actors have started.
        """
        if self.pick_actor():
            return
        if work_s:
            wanted = count_new_actors(self.ready_count, len(self.starting), work_s, self.start_s)
        else:
            wanted = 0 if self.starting else max(1, self.ready_count)
        wanted = min(wanted, -(-waiting_tasks // self.tasks_per_actor) - len(self.starting))
        if self.max_size is not None:
            wanted = min(wanted, self.max_size - self.ready_count - len(self.starting) - len(self.parked))
        if wanted > 0:
            self.add_actors(wanted)

    def release_idle(self) -> list[Any]:
        """Give up the actors without a task. Returns the handles of those that have not started yet."""
        return self.give_up([*self.starting, *self.ready_by_load[0]])

    def release_all(self) -> list[Any]:
        """Give up all actors. Returns the handles of those that are busy or have not started yet."""
        ready = [actor for actors in self.ready_by_load for actor in actors]
        return self.give_up([*self.starting, *ready, *self.parked])

    def give_up(self, actors: list[PoolActor]) -> list[Any]:
        handles = [actor.handle for actor in actors if actor.load or actor in self.starting]
        for actor in actors:
            actor.handle, self.has_released = None, True
            self.starting.pop(actor, None)
            self.ready_by_load[actor.load].pop(actor, None)
        return handles


def count_new_actors(ready: int, starting: int, work_s: float, start_s: float) -> int:
    """As many as will work at least as long as they start, if all that start now take `start_s`.

    The work then ends after (work_s + (starting + new) * start_s) / (ready + starting + new) seconds, which has to be
    2 * start_s or more.
    """
    if not ready + starting:
        return 1
    paying = work_s / start_s - 2 * ready - starting if start_s else math.inf
    return max(0, math.floor(min(paying, MAX_GROWTH * max(1, ready) - starting)))
