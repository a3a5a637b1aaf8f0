"""Requests -> replies through any server that speaks the OpenAI protocol; no GPU and no weights here.

`model.weights` still names a checkpoint, of which only the small files are read: its rules say how large pictures are
shown and how boxes are written, its tokenizer counts. Name the one that is served; for a server whose model nobody
knows, any Qwen-VL gives sizes, and `engine.coordinates` says how that model writes boxes.

`submit` and `step` hand over and collect; an event loop in a thread of its own does the rest. The schema goes along as
the server takes it, tried out once; what comes back is checked like any other answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import re
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

from pipeline.errors import ItemError, JobError
from pipeline.job import HttpEngine, Job
from pipeline.model import weights
from pipeline.model.engines.ending import Endings
from pipeline.model.engines.http import message
from pipeline.model.engines.http.caller import FAULTS, Caller
from pipeline.model.engines.http.verdict import Passing, Refused, reply
from pipeline.types import Failure, Reply, Request

GUIDES = ("json_schema", "guided_json", "json_object", "none")
OF_SCHEMAS = re.compile(r"response_format|json|guided|structured|grammar|schema", re.I)
TICK_S = 0.1  # so long `step` waits at most, so that closing need not wait for a server
LOCAL = ("dtype", "attention", "quantize", "tensor_parallel")


class Http:
    def __init__(self, settings: HttpEngine, *, model: str, endings: Endings, label: bool = False):
        self.settings = settings
        self.model = model
        self.endings = endings
        self.label = label
        self.guide = GUIDES[0] if settings.guide == "auto" else settings.guide
        self.limit = "max_tokens"
        self.vllm = False
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
        label = job.media.add_vision_id
        engine = cls(job.engine, model=job.engine.model or "", endings=Endings(family.tokenizer), label=label)
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
        try:
            listed = (await self.caller.ask("models")).get("data")
        except (JobError, Refused) as error:
            if "api_key" in str(error) or not self.model:
                raise
            return
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = [str(each.get("id")) for each in models]
        self.vllm = any(each.get("owned_by") == "vllm" for each in models)
        if not self.model and len(names) == 1:
            self.model = names[0]
        if names and self.model not in names and not any(each.get("root") == self.model for each in models):
            shown = ", ".join(names[:20])
            raise JobError(f"engine.model: {self.model or 'nothing'} is named, and {self.settings.url} serves {shown}")

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
        while True:
            guide, limit, vllm = self.guide, self.limit, self.vllm
            body = await asyncio.to_thread(self.spell, request, guide, limit, vllm)
            try:
                return await self.caller.ask("chat/completions", body, key=name(request))
            except Refused as error:
                if vllm and "mm_processor_kwargs" in error.message and self.settings.video != "native":
                    self.vllm = False  # it was started without --trust-request-mm-kwargs
                elif not self.learn(error, request, guide, limit):
                    raise

    def spell(self, request: Request, guide: str, limit: str, vllm: bool) -> bytes:
        said = message.body(
            request, self.settings, model=self.model, guide=guide, limit=limit, label=self.label, vllm=vllm
        )
        return json.dumps(said).encode()

    def learn(self, error: Refused, request: Request, guide: str, limit: str) -> bool:
        """Whether another spelling is worth a try; what one row learned, all others know."""
        if "max_completion_tokens" in error.message and limit == "max_tokens":
            self.limit = "max_completion_tokens"
            return True
        guidable = request.schema is not None and self.settings.guide == "auto" and guide != GUIDES[-1]
        if not guidable or not OF_SCHEMAS.search(error.message):
            return False
        if self.guide == guide:
            self.guide = GUIDES[GUIDES.index(guide) + 1]
        return True

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


def name(request: Request) -> str:
    """The same for every attempt at the same question, another for a question asked again."""
    said = f"{request.id}\0{request.sampling.seed}\0{request.sampling.temperature}"
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
