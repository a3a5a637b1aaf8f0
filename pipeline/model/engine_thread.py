"""Runs an engine, which may finish requests in any order, for callers that wait for their own replies.

`generate_replies` runs an engine in the caller's thread. An `EngineThread` gives the engine a thread of its own, which
callers in other threads share: the end of one caller's batch is no barrier for another's. An exception of the engine
reaches every caller.
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
Submission = tuple[Request, Future[ReplyOrFailure]]


def generate_replies(engine: Engine, requests: Iterable[Request]) -> Iterator[ReplyOrFailure]:
    """Replies as they finish. The next request is taken when the engine has room for it."""
    waiting = iter(requests)
    is_exhausted, in_flight = False, 0
    while in_flight or not is_exhausted:
        while not is_exhausted and engine.has_room():
            request = next(waiting, None)
            if request is None:
                is_exhausted = True
            else:
                engine.submit(request)
                in_flight += 1
        for reply in engine.step():
            in_flight -= 1
            yield reply


class EngineThread:
    """An engine that any number of threads may ask. Closing it closes the engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.inbox: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()  # None wakes the thread
        self.in_flight: dict[str, tuple[Future[ReplyOrFailure], float]] = {}  # by id, with the time of submission
        self.duplicates: deque[Submission] = deque()  # their id is in flight already
        self.is_closing = False
        self.end_error: BaseException | None = None
        self.timer = StepTimer()  # `worked`: the engine was busy; `waited`: it had nothing to do
        self.thread = Thread(target=self.run_engine, name="engine", daemon=True)
        self.thread.start()

    def submit_request(self, request: Request) -> Future[ReplyOrFailure]:
        future: Future[ReplyOrFailure] = Future()
        self.inbox.put((request, future))
        if self.end_error:  # the thread may have ended before it saw the request
            self.fail_waiting(self.end_error)
        return future

    def answer_requests(self, requests: Sequence[Request]) -> list[ReplyOrFailure]:
        """One reply or failure for each request, in order."""
        return [future.result() for future in [self.submit_request(request) for request in requests]]

    def close(self) -> None:
        """Stop after the current step. Callers that still wait get an error."""
        self.is_closing = True
        self.inbox.put(None)
        self.thread.join()
        self.engine.close()

    def run_engine(self) -> None:
        try:
            while self.admit_requests():
                with self.timer.measure("worked"):
                    replies = self.engine.step()
                for reply in replies:
                    self.deliver_reply(reply)
            self.fail_waiting(RuntimeError("the engine was closed before it answered"))
        except PipelineError as error:
            self.fail_waiting(error)
        except BaseException as error:
            self.fail_waiting(error)
            raise  # a bug needs its traceback

    def admit_requests(self) -> bool:
        """Submit what the engine has room for; wait for a request when nothing is in flight. False when closing."""
        postponed, self.duplicates = self.duplicates, deque()
        for request, future in postponed:
            self.admit_request(request, future)
        while not self.is_closing and (self.engine.has_room() or not self.in_flight):
            if self.in_flight and self.inbox.empty():
                break
            with self.timer.measure("waited"):
                submission = self.inbox.get()
            if submission:
                self.admit_request(*submission)
        return not self.is_closing

    def admit_request(self, request: Request, future: Future[ReplyOrFailure]) -> None:
        if request.id in self.in_flight:
            self.duplicates.append((request, future))
        else:
            self.in_flight[request.id] = future, time.monotonic()
            self.engine.submit(request)

    def deliver_reply(self, reply: ReplyOrFailure) -> None:
        future, submitted_at = self.in_flight.pop(reply.id)
        if isinstance(reply, Reply):
            reply = replace(reply, latency_s=time.monotonic() - submitted_at)
        future.set_result(reply)

    def fail_waiting(self, error: BaseException) -> None:
        self.end_error = error
        futures = [*(future for future, _ in self.in_flight.values()), *(future for _, future in self.duplicates)]
        while not self.inbox.empty():
            if submission := self.inbox.get():
                futures.append(submission[1])
        self.in_flight, self.duplicates = {}, deque()
        for future in futures:
            if not future.done():
                future.set_exception(error)
