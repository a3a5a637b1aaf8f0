"""SIGTERM and Ctrl-C -> a run that ends in good order.

While chunks are under way the first signal only asks: nothing new is begun, what is begun is committed. The second
ends at once, and so does the end of the grace: who sent the first (Kubernetes, `ray job stop`) kills when it is over.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import Terminated

GRACE_S = 25.0  # Kubernetes gives 30
SAID = "stopping: what is under way is committed first; once more to stop at once"
SHARE = 0.8  # of the grace is for what is under way; the rest is for leaving


class Signals:
    """Open while a run can be stopped, and again inside of Ray, whose native code installs a handler of its own."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.stopping: Event | None = None  # while there is something to end in good order
        self.number = signal.SIGTERM

    def __enter__(self) -> Signals:
        self.before: dict[int, Any] = {n: signal.signal(n, self.heard) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def grace(self, then: Callable[[], object] = lambda: None) -> Iterator[Event]:
        """Set, and `then` called, when nothing new is to be begun; who then leaves in good order is ended by it."""
        grace_s = SHARE * float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or GRACE_S)
        self.timer = Timer(grace_s, lambda: os.kill(os.getpid(), self.number))
        self.timer.daemon = True
        self.then = then
        self.stopping = stopping = Event()
        try:
            yield stopping
        finally:
            self.timer.cancel()
            self.stopping = None
        if stopping.is_set():
            self.end()

    def heard(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if self.stopping is None or self.stopping.is_set():
            self.end()
        self.stopping.set()
        self.timer.start()
        # from a thread, for whoever was interrupted may hold the display's lock, or one of Ray's
        Thread(target=lambda: (self.then(), self.say(SAID)), daemon=True).start()

    def end(self) -> NoReturn:
        raise KeyboardInterrupt if self.number == signal.SIGINT else Terminated
