"""The seam between the pipeline and whatever turns a Request into tokens.

An engine is driven from one thread: `submit` while it has `room`, `step` until what was submitted
came back. It may finish requests in any order; `pipeline.model.engine_thread` puts them back in theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pipeline.types import Failure, Reply, Request


class Engine(Protocol):
    def has_room(self) -> bool:
        """Whether another request would be of use now. Always true for an idle engine."""
        ...

    def submit(self, request: Request) -> None:
        """Take a request. One that can never be answered comes back as a Failure from `step`."""
        ...

    def step(self) -> list[Reply | Failure]:
        """Do some work and return what finished by it, maybe nothing. Idle: returns at once."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Totals since the start: what was computed, what was needed, how full it was."""
        ...

    def close(self) -> None: ...
