"""A step that never ends -> the end of the process, with a word on where it hung.

A stuck kernel or collective cannot be interrupted from Python. What runs the process (Ray, a shell)
sees it die and can start it anew; a hang it would never see.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import TypeVar

HANG_EXIT_CODE = 70  # EX_SOFTWARE

StepT = TypeVar("StepT")


class Watchdog:
    """Watches what is done inside `with watchdog:`, one step at a time; `what` names a step."""

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
        """The same steps, each watched while it is made."""
        rest = iter(steps)
        while True:
            with self:
                step = next(rest, None)
            if step is None:
                return
            yield step

    def exit_on_hang(self) -> None:
        while not self.closed.wait(self.limit_s / 10):
            since = self.step_started_at
            if since is not None and time.monotonic() - since > self.limit_s:
                os.write(2, f"vlbatch: {self.step_name} took more than {self.limit_s:g} s; ending\n".encode())
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                os._exit(HANG_EXIT_CODE)

    def close(self) -> None:
        self.closed.set()
