"""Ends the process when a step hangs, with a traceback of where.

Python cannot interrupt a stuck kernel or collective. Whatever runs the process (Ray, a shell) notices when it dies
and can restart it, but would never notice a hang.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import TypeVar

from pipeline.errors import ExitCode

StepT = TypeVar("StepT")


class Watchdog:
    """Watches one step at a time: whatever runs inside `with watchdog:`."""

    def __init__(self, limit_s: float, step_name: str = "a step of the engine"):
        self.limit_s, self.step_name = limit_s, step_name
        self.step_started_at: float | None = None
        self.closed = Event()
        Thread(target=self.exit_on_hang, name="watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self.step_started_at = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.step_started_at = None

    def watch_steps(self, steps: Iterable[StepT]) -> Iterator[StepT]:
        """Yield the steps of an iterator, and watch it while it produces each one."""
        iterator = iter(steps)
        while True:
            with self:
                step = next(iterator, None)
            if step is None:
                return
            yield step

    def exit_on_hang(self) -> None:
        while not self.closed.wait(self.limit_s / 10):
            started_at = self.step_started_at
            if started_at is not None and time.monotonic() - started_at > self.limit_s:
                os.write(2, f"vlbatch: {self.step_name} took more than {self.limit_s:g} s; ending\n".encode())
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                os._exit(ExitCode.HANG)

    def close(self) -> None:
        self.closed.set()
