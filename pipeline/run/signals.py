"""Stops a run in good order: on SIGTERM, on Ctrl-C, or for a reason of its own.

While chunks are being worked on, the first signal only asks: no chunk is begun, and chunks that have begun are
committed. The second signal ends the run at once. So does the end of the grace period, before the sender of the first
signal (Kubernetes, `ray job stop`) kills the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer, current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import StoppedError, Terminated
from pipeline.run.log import Say

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DEFAULT_GRACE_S = 25.0  # Kubernetes gives 30
GRACE_SHARE = 0.8  # of the grace period is for chunks that have begun, the rest for shutting down
STOPPING_MESSAGE = "stopping: chunks that have begun are committed first; send the signal again to stop at once"


class StopSignals:
    """Handles both signals while it is open. In another thread than the first, the caller's handlers stay."""

    def __init__(self, say: Say):
        self.say = say
        self.stop_event: Event | None = None  # set while there are chunks to finish
        self.signal_number = signal.SIGTERM
        self.stop_reason = ""  # of the run itself, without a signal

    def __enter__(self) -> StopSignals:
        numbers = HANDLED_SIGNALS if current_thread() is main_thread() else ()  # Python allows no other thread to do so
        self.previous_handlers: dict[int, Any] = {
            number: signal.signal(number, self.handle_signal) for number in numbers
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def stop_gracefully(self, on_stop: Callable[[], object] = lambda: None) -> Iterator[Event]:
        """The first signal sets the event and calls `on_stop`; when the block then ends, so does the run."""
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
        if self.stop_reason:
            raise StoppedError(self.stop_reason)
        if stopping.is_set():
            self.raise_termination()

    def request_stop(self, reason: str) -> None:
        """Stop as the first signal does, but without a grace period. The run then ends with the reason."""
        if self.stop_event is not None and not self.stop_event.is_set():
            self.stop_reason = reason
            self.stop_event.set()
            self.on_stop()

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        self.signal_number = signal.Signals(signal_number)
        if self.stop_event is None or (self.stop_event.is_set() and not self.stop_reason):
            self.raise_termination()
        self.stop_reason = ""
        self.stop_event.set()
        self.grace_timer.start()
        # In a thread, because the interrupted code may hold the lock of the display or one of Ray's.
        Thread(target=lambda: (self.on_stop(), self.say(STOPPING_MESSAGE)), daemon=True).start()

    def raise_termination(self) -> NoReturn:
        raise KeyboardInterrupt if self.signal_number == signal.SIGINT else Terminated
