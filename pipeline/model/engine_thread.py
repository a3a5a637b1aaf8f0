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
from pipeline.model.engines.base import Engine
from pipeline.step_timer import StepTimer
from pipeline.types import Failure, Reply, Request

ReplyOrFailure = Reply | Failure


def generate_replies(engine: Engine, requests: Iterable[Request]) -> Iterator[ReplyOrFailure]:
    """Answers as they come. Requests are pulled only when the engine has room for them."""
    source = iter(requests)
    exhausted, underway = False, 0
    while underway or not exhausted:
        while not exhausted and engine.has_room():
            request = next(source, None)
            if request is None:
                exhausted = True
            else:
                engine.submit(request)
                underway += 1
        for answer in engine.step():
            underway -= 1
            yield answer


class EngineThread:
    """An engine with a thread, asked from any number of threads. Closing it closes the engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.inbox: queue.SimpleQueue[tuple[Request, Future[ReplyOrFailure]] | None] = queue.SimpleQueue()
        self.in_flight: dict[str, tuple[Future[ReplyOrFailure], float]] = {}  # and when it was taken
        self.duplicates: deque[tuple[Request, Future[ReplyOrFailure]]] = deque()  # whose id is under way already
        self.is_closing = False
        self.end_error: BaseException | None = None
        self.meter = StepTimer()  # `waited`: nothing was asked; `worked`: the engine had something to do
        self.thread = Thread(target=self.serve, name="engine", daemon=True)
        self.thread.start()

    def submit_request(self, request: Request) -> Future[ReplyOrFailure]:
        future: Future[ReplyOrFailure] = Future()
        self.inbox.put((request, future))
        if self.end_error:  # it may have ended before it could see this one
            self.fail_waiting(self.end_error)
        return future

    def answer_requests(self, requests: Sequence[Request]) -> list[ReplyOrFailure]:
        """One answer for each request, in order."""
        return [future.result() for future in [self.submit_request(request) for request in requests]]

    def close(self) -> None:
        """Stop after the step that is being made; who still waits is told so."""
        self.is_closing = True
        self.inbox.put(None)  # it may be waiting for somebody to ask
        self.thread.join()
        self.engine.close()

    def serve(self) -> None:
        try:
            while self.admit_requests():
                with self.meter.measure("worked"):
                    answers = self.engine.step()
                for answer in answers:
                    future, taken = self.in_flight.pop(answer.id)
                    future.set_result(add_seconds(answer, time.monotonic() - taken))
            self.fail_waiting(RuntimeError("the engine was closed before it answered"))
        except PipelineError as error:  # for people: whoever waits shows it
            self.fail_waiting(error)
        except BaseException as error:
            self.fail_waiting(error)  # whoever waits must not wait for ever
            raise

    def admit_requests(self) -> bool:
        """Take what has come in, as far as there is room; idle, wait for it. False at the end."""
        again, self.duplicates = self.duplicates, deque()
        for request, future in again:
            self.start_request(request, future)
        while not self.is_closing and (self.engine.has_room() or not self.in_flight):
            try:
                entry = self.take_next()
            except queue.Empty:
                break
            if entry:
                self.start_request(*entry)
        return not self.is_closing

    def take_next(self) -> tuple[Request, Future[ReplyOrFailure]] | None:
        if self.in_flight:
            return self.inbox.get(block=False)
        with self.meter.measure("waited"):
            return self.inbox.get()

    def start_request(self, request: Request, future: Future[ReplyOrFailure]) -> None:
        if request.id in self.in_flight:
            self.duplicates.append((request, future))
        else:
            self.in_flight[request.id] = future, time.monotonic()
            self.engine.submit(request)

    def fail_waiting(self, error: BaseException) -> None:
        self.end_error = error
        waiting = [*(future for future, _ in self.in_flight.values()), *(future for _, future in self.duplicates)]
        while not self.inbox.empty():
            if entry := self.inbox.get():
                waiting.append(entry[1])
        self.in_flight, self.duplicates = {}, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


def add_seconds(answer: ReplyOrFailure, seconds: float) -> ReplyOrFailure:
    return replace(answer, latency_s=seconds) if isinstance(answer, Reply) else answer
