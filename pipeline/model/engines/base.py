"""The seam between the pipeline and an engine, which turns Requests into Replies.

An engine has two parts. The driver asks its `EngineType` about a job; the module of that class imports neither torch
nor vLLM, so that every command starts at once. `EngineType.open` imports the rest and returns a running `Engine`.
To add an engine, write both and name the EngineType in `pipeline.registry.ENGINES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from pipeline.job.spec import EngineSettings, Job
from pipeline.model.families.base import Family
from pipeline.registry import ENGINES, load_registered
from pipeline.types import CoordinateSystem, Failure, Reply, Request, TimeOrigin

Ability = Literal[
    "guidance",  # an answer fits its schema, however small the budget
    "confidence",  # a reply carries the log-probability of its tokens
    "choices",  # the log-probabilities of a request's continuations, without writing
    "embeddings",  # the vector of a request, from the language model
    "vision_embeddings",  # the same, from the features of its media alone
]
DEFAULT_SLOTS = 64  # where an engine chooses the number itself when it starts


class Engine(Protocol):
    """A running engine. `pipeline.model.engine_thread` drives it from one thread.

    It may finish requests in any order.
    """

    def has_room(self) -> bool:
        """Whether to submit another request now. Always true for an idle engine."""
        ...

    def submit(self, request: Request) -> None:
        """Accept a request. An impossible request comes back from `step` as a Failure."""
        ...

    def step(self) -> list[Reply | Failure]:
        """Do some work and return what it finished, maybe nothing. Returns at once when idle."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Totals since the start (`rows`, ...) and the state now (`slots`, `busy`, `waiting`, ...)."""
        ...

    def close(self) -> None: ...


class EngineType(ABC):
    """The facts about an engine that the driver needs before a worker opens it."""

    Settings: ClassVar[type[EngineSettings]]  # the section `engine` of a job
    abilities: ClassVar[frozenset[Ability]] = frozenset()
    missing_reasons: ClassVar[Mapping[Ability, str]] = {}  # why it does not have an ability
    runs_model_here: ClassVar[bool] = True  # on the workers of the job, so that its weights need memory there

    @abstractmethod
    def open(self, job: Job) -> Engine:
        """Start the engine in this process. JobError where the job or the machine does not allow it."""

    def find_problems(self, job: Job) -> list[str]:
        """The parts of a job that this engine cannot do, each named by its key."""
        return []

    def find_warnings(self, job: Job) -> list[str]:
        """Warnings about a job that can run."""
        return []

    def count_slots(self, job: Job) -> int:
        """Requests that one replica works on at once."""
        return DEFAULT_SLOTS

    def copies_beginnings(self, job: Job) -> bool:
        """Whether what prompts of several rows begin with is computed once."""
        return False

    def get_coordinate_system(self, job: Job, family: Family) -> CoordinateSystem | None:
        """The coordinates in which the model writes boxes and points; None where nothing says it."""
        return job.model.coordinates or family.coordinates

    def get_time_origin(self, job: Job, family: Family) -> TimeOrigin:
        """The zero point of the seconds that the model writes about a video."""
        return family.time_origin


def get_engine_type(job: Job) -> EngineType:
    engine_type: type[EngineType] = load_registered(ENGINES, job.engine.kind, "engine.kind")
    return engine_type()
