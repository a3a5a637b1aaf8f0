"""Requests -> replies, through an engine that may finish them in any order.

`run` drives an engine from the caller's own thread. A `Desk` gives the engine a thread of its own:
callers in other threads leave their questions there and wait for their own answers, so the end of
one caller's batch is no barrier for another's. An exception of the engine reaches every caller.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

from pipeline.errors import PipelineError
from pipeline.meter import Meter
from pipeline.model.engines.base import Engine
from pipeline.types import Failure, Reply, Request

Answer = Reply | Failure


def run(engine: Engine, requests: Iterable[Request]) -> Iterator[Answer]:
    """Answers as they come. Requests are pulled only when the engine has room for them."""
    source = iter(requests)
    exhausted, underway = False, 0
    while underway or not exhausted:
        while not exhausted and engine.room():
            request = next(source, None)
            if request is None:
                exhausted = True
            else:
                engine.submit(request)
                underway += 1
        for answer in engine.step():
            underway -= 1
            yield answer


class Desk:
    """An engine with a thread, asked from any number of threads. Closing it closes the engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.inbox: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self.underway: dict[str, tuple[Future[Answer], float]] = {}  # and when it was taken
        self.parked: deque[tuple[Request, Future[Answer]]] = deque()  # whose id is under way already
        self.closing = False
        self.ended: BaseException | None = None
        self.meter = Meter()  # `waited`: nothing was asked; `worked`: the engine had something to do
        self.thread = Thread(target=self.serve, name="engine", daemon=True)
        self.thread.start()

    def ask(self, request: Request) -> Future[Answer]:
        future: Future[Answer] = Future()
        self.inbox.put((request, future))
        if self.ended:  # it may have ended before it could see this one
            self.abandon(self.ended)
        return future

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each request, in order."""
        return [future.result() for future in [self.ask(request) for request in requests]]

    def close(self) -> None:
        """Stop after the step that is being made; who still waits is told so."""
        self.closing = True
        self.inbox.put(None)  # it may be waiting for somebody to ask
        self.thread.join()
        self.engine.close()

    def serve(self) -> None:
        try:
            while self.admit():
                with self.meter.on("worked"):
                    answers = self.engine.step()
                for answer in answers:
                    future, taken = self.underway.pop(answer.id)
                    future.set_result(timed(answer, time.monotonic() - taken))
            self.abandon(RuntimeError("the engine was closed before it answered"))
        except PipelineError as error:  # for people: whoever waits shows it
            self.abandon(error)
        except BaseException as error:
            self.abandon(error)  # whoever waits must not wait for ever
            raise

    def admit(self) -> bool:
        """Take what has come in, as far as there is room; idle, wait for it. False at the end."""
        again, self.parked = self.parked, deque()
        for request, future in again:
            self.submit(request, future)
        while not self.closing and (self.engine.room() or not self.underway):
            try:
                entry = self.next()
            except queue.Empty:
                break
            if entry:
                self.submit(*entry)
        return not self.closing

    def next(self) -> tuple[Request, Future[Answer]] | None:
        if self.underway:
            return self.inbox.get(block=False)
        with self.meter.on("waited"):
            return self.inbox.get()

    def submit(self, request: Request, future: Future[Answer]) -> None:
        if request.id in self.underway:
            self.parked.append((request, future))
        else:
            self.underway[request.id] = future, time.monotonic()
            self.engine.submit(request)

    def abandon(self, error: BaseException) -> None:
        self.ended = error
        waiting = [*(future for future, _ in self.underway.values()), *(future for _, future in self.parked)]
        while not self.inbox.empty():
            if entry := self.inbox.get():
                waiting.append(entry[1])
        self.underway, self.parked = {}, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


def timed(answer: Answer, seconds: float) -> Answer:
    return replace(answer, seconds=seconds) if isinstance(answer, Reply) else answer
