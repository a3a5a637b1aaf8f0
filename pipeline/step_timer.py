"""Seconds -> what they went to, for whoever wants to know what a run waits for.

Two readings of a clock a step: cheap enough to be always on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class StepTimer:
    """Added to from any thread; what is taken is not counted again."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            with self.lock:
                self.seconds[step] = self.seconds.get(step, 0.0) + spent

    def take_seconds(self) -> dict[str, float]:
        with self.lock:
            taken, self.seconds = self.seconds, {}
        return taken
