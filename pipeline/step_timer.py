"""Measures how many seconds each step of a run takes. Cheap enough to be always on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import TypeVar

ItemT = TypeVar("ItemT")


class StepTimer:
    """May be used from any thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            with self.lock:
                self.seconds[step] = self.seconds.get(step, 0.0) + elapsed

    def measure_each(self, step: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """Only the time that it takes to get the items, not what is done with them."""
        iterator = iter(items)
        while True:
            with self.measure(step):
                found = list(islice(iterator, 1))
            if not found:
                return
            yield found[0]

    def take_seconds(self) -> dict[str, float]:
        """The seconds by step since the last call."""
        with self.lock:
            taken, self.seconds = self.seconds, {}
        return taken
