"""Requests -> replies through any server that speaks the OpenAI protocol; no GPU and no weights here.

`model.weights` still names a checkpoint, of which only the small files are read: its rules say how large pictures are
shown and how boxes are written, its tokenizer counts. Name the one that is served; for a server whose model nobody
knows, any Qwen-VL gives sizes, and `engine.coordinates` says how that model writes boxes.

`submit` and `step` hand over and collect; an event loop in a thread of its own does the rest. The schema goes along as
the server takes it, tried out until the first answer; what comes back is checked like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.job.spec import HttpEngine, Job
from pipeline.model import weights
from pipeline.model.engines.http.client import FAULTS, Caller
from pipeline.model.engines.http.request_body import GUIDES, Dialect, body
from pipeline.model.engines.http.responses import Passing, Refused, reply, shrunk
from pipeline.model.guidance.truncated import Endings
from pipeline.types import Failure, Reply, Request

TICK_S = 0.1  # so long `step` waits at most, so that closing need not wait for a server
LOCAL = ("dtype", "attention", "quantize", "tensor_parallel")


class Http:
    def __init__(self, settings: HttpEngine, *, endings: Endings, label: bool = False):
        self.settings = settings
        self.endings = endings
        self.label = label
        self.dialect = Dialect(settings.model or "", GUIDES[0] if settings.guide == "auto" else settings.guide)
        self.guided = settings.guide != "auto"  # how the schema is sent is settled
        self.done: queue.SimpleQueue[Future[Reply | Failure]] = queue.SimpleQueue()
        self.underway = 0
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, name="http", daemon=True)
        self.thread.start()
        self.caller: Caller = self.wait_for(self.open_caller())

    @classmethod
    def open(cls, job: Job) -> Http:
        assert isinstance(job.engine, HttpEngine)
        for problem in cls.problems(job):
            raise JobError(problem)
        folder = weights.locate_small(job.model.weights, job.model.revision)
        family = weights.family(folder, model=job.model)
        engine = cls(job.engine, endings=Endings(family.tokenizer), label=job.media.add_vision_id)
        try:
            engine.wait_for(engine.meet())
        except BaseException:
            engine.close()
            raise
        return engine

    @staticmethod
    def problems(job: Job) -> list[str]:
        """What a job asks that only whoever runs the model can do."""
        said = [name for name in LOCAL if getattr(job.model, name) != type(job.model).model_fields[name].default]
        said += ["context.rope"] if job.model.context.rope else []
        found = [f"model.{name}: the server decides that; leave it out with engine http" for name in said]
        if job.workers.generate.gpus:
            found.append("workers.generate.gpus: engine http needs no GPU; leave it out")
        return found

    async def open_caller(self) -> Caller:
        return Caller(self.settings)

    async def meet(self) -> None:
        """Who is there: a wrong key or name is found before the first row. A server may have no list of models."""
        named = self.settings.model
        try:
            listed = (await self.caller.ask("models")).get("data")
        except (JobError, GenerateError) as error:
            if named is None and isinstance(error, GenerateError):
                raise JobError(f"engine.model: nothing is named, and there is no list: {error.message}") from error
            if named is None or "api_key" in str(error):
                raise
            return
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = [str(each.get("id")) for each in models]
        if named is None and len(names) == 1:
            named = names[0]
        if named is None or (names and named not in {*names, *(each.get("root") for each in models)}):
            shown = ", ".join(names[:20]) or "no list of models"
            raise JobError(f"engine.model: {named or 'nothing'} is named, and {self.settings.url} serves {shown}")
        self.dialect = replace(
            self.dialect, model=named, unresized=any(each.get("owned_by") == "vllm" for each in models)
        )

    def room(self) -> bool:
        return self.underway < self.settings.concurrency

    def submit(self, request: Request) -> None:
        self.underway += 1
        asyncio.run_coroutine_threadsafe(self.answer(request), self.loop).add_done_callback(self.done.put)

    def step(self) -> list[Reply | Failure]:
        answers: list[Reply | Failure] = []
        try:
            while self.underway:
                answers.append(self.done.get(timeout=0 if answers else TICK_S).result())
                self.underway -= 1
        except queue.Empty:
            pass
        return answers

    async def answer(self, request: Request) -> Reply | Failure:
        try:
            found = await self.converse(request)
        except ItemError as error:
            return error.failure(request.id)
        if self.settings.send == "pixels" and self.settings.coordinates is None and shrunk(request, found):
            found = replace(found, flags=("shrunk",))
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += found.prompt_tokens or 0
        self.counts["output_tokens"] += found.tokens
        return self.endings.ended(found, request)

    async def converse(self, request: Request) -> Reply:
        """Ask, spelled as the server wants it; a broken answer is asked for again."""
        for number in range(FAULTS):
            try:
                return reply(request, await self.send(request))
            except Passing as trouble:
                if number == FAULTS - 1:
                    raise Refused(trouble.kind, trouble.message) from trouble
        raise AssertionError

    async def send(self, request: Request) -> dict[str, Any]:
        """In other words where the server wants others; what was taken once is kept for all rows."""
        began = dialect = self.dialect
        while True:
            guidable = request.schema is not None and not self.guided
            said = await asyncio.to_thread(body, request, self.settings, dialect, label=self.label)
            try:
                answer = await self.caller.ask("chat/completions", said, key=name(request, said))
            except Refused as error:
                other = dialect.after(error.message, guidable=guidable)
                if other is None:
                    raise
                dialect = other
                continue
            self.guided |= request.schema is not None
            if dialect != began:
                self.dialect = dialect
            return answer

    def wait_for(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def metrics(self) -> Mapping[str, float]:
        now = {
            "busy": self.underway,
            "slots": int(self.caller.gate.limit),
            "waiting": 0,
            "retries": self.caller.retries,
        }
        return {**self.counts, **now}

    def close(self) -> None:
        """What is under way is given up: the connections are closed, and a good server stops computing."""
        self.wait_for(self.end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.caller.close()


def name(request: Request, said: bytes) -> str:
    """The same for every attempt at the same question, another for any other: servers may answer from memory."""
    return hashlib.blake2b(request.id.encode() + b"\0" + said, digest_size=16).hexdigest()
