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
from typing import TYPE_CHECKING, Any

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.model.engines.http.client import MAX_FAULTS, HttpClient
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.engines.http.request_body import GUIDE_MODES, Dialect, build_body
from pipeline.model.engines.http.responses import (
    RequestRefusedError,
    TransientServerError,
    has_shrunk_images,
    parse_reply,
)
from pipeline.model.guidance.reply_completer import ReplyCompleter
from pipeline.types import Failure, Reply, Request

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POLL_S = 0.1  # so long `step` waits at most, so that closing need not wait for a server


class HttpEngine:
    def __init__(self, settings: HttpSettings, *, reply_completer: ReplyCompleter, add_vision_id: bool = False):
        self.settings = settings
        self.reply_completer = reply_completer
        self.add_vision_id = add_vision_id
        self.dialect = Dialect(settings.model or "", GUIDE_MODES[0] if settings.guide == "auto" else settings.guide)
        self.is_guide_settled = settings.guide != "auto"  # how the schema is sent is settled
        self.finished: queue.SimpleQueue[Future[Reply | Failure]] = queue.SimpleQueue()
        self.in_flight = 0
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, name="http", daemon=True)
        self.thread.start()
        self.client: HttpClient = self.run_in_loop(self.open_client())

    @classmethod
    def connect(cls, settings: HttpSettings, tokenizer: Tokenizer, *, add_vision_id: bool = False) -> HttpEngine:
        """An engine whose server has answered: a wrong key or model name is found before the first row."""
        engine = cls(settings, reply_completer=ReplyCompleter(tokenizer), add_vision_id=add_vision_id)
        try:
            engine.run_in_loop(engine.check_server())
        except BaseException:
            engine.close()
            raise
        return engine

    async def open_client(self) -> HttpClient:
        return HttpClient(self.settings)

    async def check_server(self) -> None:
        """Who is there: a wrong key or name is found before the first row. A server may have no list of models."""
        named = self.settings.model
        try:
            listed = (await self.client.send_request("models")).get("data")
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
            self.dialect, model=named, can_skip_resize=any(each.get("owned_by") == "vllm" for each in models)
        )

    def has_room(self) -> bool:
        return self.in_flight < self.settings.concurrency

    def submit(self, request: Request) -> None:
        self.in_flight += 1
        asyncio.run_coroutine_threadsafe(self.answer_request(request), self.loop).add_done_callback(self.finished.put)

    def step(self) -> list[Reply | Failure]:
        answers: list[Reply | Failure] = []
        try:
            while self.in_flight:
                answers.append(self.finished.get(timeout=0 if answers else POLL_S).result())
                self.in_flight -= 1
        except queue.Empty:
            pass
        return answers

    async def answer_request(self, request: Request) -> Reply | Failure:
        try:
            found = await self.ask_until_valid(request)
        except ItemError as error:
            return error.to_failure(request.id)
        if self.settings.send == "pixels" and self.settings.coordinates is None and has_shrunk_images(request, found):
            found = replace(found, flags=("shrunk",))
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += found.prompt_tokens or 0
        self.counts["output_tokens"] += found.output_tokens
        return self.reply_completer.complete_reply(found, request)

    async def ask_until_valid(self, request: Request) -> Reply:
        """Ask, spelled as the server wants it; a broken answer is asked for again."""
        for number in range(MAX_FAULTS):
            try:
                return parse_reply(request, await self.send_in_dialect(request))
            except TransientServerError as trouble:
                if number == MAX_FAULTS - 1:
                    raise RequestRefusedError(trouble.kind, trouble.message) from trouble
        raise AssertionError

    async def send_in_dialect(self, request: Request) -> dict[str, Any]:
        """In other words where the server wants others; what was taken once is kept for all rows."""
        began = dialect = self.dialect
        while True:
            guidable = request.schema_text is not None and not self.is_guide_settled
            said = await asyncio.to_thread(
                build_body, request, self.settings, dialect, add_vision_id=self.add_vision_id
            )
            try:
                answer = await self.client.send_request(
                    "chat/completions", said, idempotency_key=compute_idempotency_key(request, said)
                )
            except RequestRefusedError as error:
                other = dialect.adapt_to(error.message, can_change_guide=guidable)
                if other is None:
                    raise
                dialect = other
                continue
            self.is_guide_settled |= request.schema_text is not None
            if dialect != began:
                self.dialect = dialect
            return answer

    def run_in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def metrics(self) -> Mapping[str, float]:
        now = {
            "busy": self.in_flight,
            "slots": int(self.client.limiter.limit),
            "waiting": 0,
            "retries": self.client.retries,
        }
        return {**self.counts, **now}

    def close(self) -> None:
        """What is under way is given up: the connections are closed, and a good server stops computing."""
        self.run_in_loop(self.cancel_requests())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def cancel_requests(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.close()


def compute_idempotency_key(request: Request, body: bytes) -> str:
    """The same for every attempt at the same question, another for any other: servers may answer from memory."""
    return hashlib.blake2b(request.id.encode() + b"\0" + body, digest_size=16).hexdigest()
