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

DEFAULT_GRACE_S = 25.0  # Kubernetes gives 30
STOPPING_MESSAGE = "stopping: what is under way is committed first; once more to stop at once"
GRACE_SHARE = 0.8  # of the grace is for what is under way; the rest is for leaving


class StopSignals:
    """Open while a run can be stopped, and again inside of Ray, whose native code installs a handler of its own."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.stop_event: Event | None = None  # while there is something to end in good order
        self.signal_number = signal.SIGTERM

    def __enter__(self) -> StopSignals:
        self.previous_handlers: dict[int, Any] = {
            n: signal.signal(n, self.handle_signal) for n in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def stop_gracefully(self, on_stop: Callable[[], object] = lambda: None) -> Iterator[Event]:
        """Set, and `then` called, when nothing new is to be begun; who then leaves in good order is ended by it."""
        grace_s = GRACE_SHARE * float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or DEFAULT_GRACE_S)
        self.grace_timer = Timer(grace_s, lambda: os.kill(os.getpid(), self.signal_number))
        self.grace_timer.daemon = True
        self.on_stop = on_stop
        self.stop_event = stopping = Event()
        try:
            yield stopping
        finally:
            self.grace_timer.cancel()
            self.stop_event = None
        if stopping.is_set():
            self.raise_termination()

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        self.signal_number = signal.Signals(signal_number)
        if self.stop_event is None or self.stop_event.is_set():
            self.raise_termination()
        self.stop_event.set()
        self.grace_timer.start()
        # from a thread, for whoever was interrupted may hold the display's lock, or one of Ray's
        Thread(target=lambda: (self.on_stop(), self.say(STOPPING_MESSAGE)), daemon=True).start()

    def raise_termination(self) -> NoReturn:
        raise KeyboardInterrupt if self.signal_number == signal.SIGINT else Terminated
