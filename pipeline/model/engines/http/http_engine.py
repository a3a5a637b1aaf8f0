"""Answers requests through any server that speaks the OpenAI protocol.

`submit` and `step` hand requests to an event loop in a thread of its own and collect its replies. The dialect of the
server, such as how it takes the schema, is found out with the first requests. Replies are checked like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.model.engines.http.choice_scores import CHOICE_FIELDS, read_choice_logprobs, split_questions
from pipeline.model.engines.http.client import MAX_ROW_FAULTS, HttpClient
from pipeline.model.engines.http.embeddings import build_embedding_body, parse_embedding
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.engines.http.request_body import GUIDE_MODES, SCHEMA_GUIDES, Dialect, build_body
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

STEP_TIMEOUT_S = 0.1  # so that closing does not wait for the server


class HttpEngine:
    def __init__(
        self,
        settings: HttpSettings,
        *,
        reply_completer: ReplyCompleter,
        add_vision_id: bool = False,
        template_options: Mapping[str, bool] = MappingProxyType({}),
        keeps_sizes: bool = True,  # the model reads pictures at the size that they have
    ):
        self.settings = settings
        self.reply_completer = reply_completer
        self.add_vision_id = add_vision_id
        self.template_options = template_options
        self.keeps_sizes = keeps_sizes
        self.dialect = Dialect(settings.model or "", GUIDE_MODES[0] if settings.guide == "auto" else settings.guide)
        self.is_guide_settled = settings.guide != "auto"
        self.finished: queue.SimpleQueue[Future[Reply | Failure]] = queue.SimpleQueue()
        self.in_flight = 0
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, name="http", daemon=True)
        self.thread.start()
        self.client: HttpClient = self.run_in_loop(self.create_client())

    @classmethod
    def connect(cls, settings: HttpSettings, tokenizer: Tokenizer, **options: Any) -> HttpEngine:
        """An engine whose server has answered: a wrong key or model name is found before the first row."""
        engine = cls(settings, reply_completer=ReplyCompleter(tokenizer), **options)
        try:
            engine.run_in_loop(engine.check_server())
        except BaseException:
            engine.close()
            raise
        return engine

    async def create_client(self) -> HttpClient:
        return HttpClient(self.settings)

    async def check_server(self) -> None:
        """Check key and model name with the list of models, which some servers lack, and learn whether it is vLLM."""
        model = self.settings.model
        try:
            listed = (await self.client.send_request("models")).get("data")
        except (JobError, GenerateError) as error:
            if model is None and isinstance(error, GenerateError):
                raise JobError(f"engine.model: nothing is named, and there is no list: {error.message}") from error
            if model is None or "api_key" in str(error):
                raise
            return
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        names = [str(entry.get("id")) for entry in entries]
        if model is None and len(names) == 1:
            model = names[0]
        if model is None or (names and model not in {*names, *(entry.get("root") for entry in entries)}):
            shown = ", ".join(names[:20]) or "no list of models"
            raise JobError(f"engine.model: {model or 'nothing'} is named, and {self.settings.url} serves {shown}")
        is_vllm = any(entry.get("owned_by") == "vllm" for entry in entries)
        self.dialect = replace(self.dialect, model=model, can_skip_resize=is_vllm and self.keeps_sizes)

    def has_room(self) -> bool:
        return self.in_flight < self.settings.concurrency

    def submit(self, request: Request) -> None:
        self.in_flight += 1
        asyncio.run_coroutine_threadsafe(self.answer_request(request), self.loop).add_done_callback(self.finished.put)

    def step(self) -> list[Reply | Failure]:
        answers: list[Reply | Failure] = []
        try:
            while self.in_flight:
                answers.append(self.finished.get(timeout=0 if answers else STEP_TIMEOUT_S).result())
                self.in_flight -= 1
        except queue.Empty:
            pass
        return answers

    async def answer_request(self, request: Request) -> Reply | Failure:
        try:
            reply = await self.fetch_reply(request)
        except ItemError as error:
            return error.to_failure(request.id)
        if self.settings.send == "pixels" and self.settings.coordinates is None and has_shrunk_images(request, reply):
            reply = replace(reply, flags=("shrunk",))
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += reply.prompt_tokens or 0
        self.counts["output_tokens"] += reply.output_tokens
        was_guided = self.dialect.guide in SCHEMA_GUIDES
        return self.reply_completer.complete_reply(reply, request, was_guided=was_guided)

    async def fetch_reply(self, request: Request) -> Reply:
        """Ask again while the server's answer is broken."""
        for attempt in count(1):
            try:
                if request.continuations:
                    return await self.fetch_choices(request)
                if request.pooling:
                    return parse_embedding(request, await self.send_for_vector(request))
                return parse_reply(request, await self.send_chat_completion(request))
            except TransientServerError as error:
                if attempt == MAX_ROW_FAULTS:
                    raise RequestRefusedError(error.kind, error.message) from error
        raise AssertionError("count() does not end")

    async def fetch_choices(self, request: Request) -> Reply:
        """With answer.multi each choice is a question of its own."""
        questions = split_questions(request)
        responses = [self.send_chat_completion(question, CHOICE_FIELDS) for question, _ in questions]
        replies, logprobs = list[Reply](), list[float]()
        for (question, parts), response in zip(questions, await asyncio.gather(*responses), strict=True):
            replies.append(parse_reply(question, response))
            logprobs += read_choice_logprobs(response, parts)
        prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies) or None
        output_tokens = sum(reply.output_tokens for reply in replies)
        return Reply(
            request.id,
            "",
            output_tokens=output_tokens,
            prompt_tokens=prompt_tokens,
            continuation_logprobs=tuple(logprobs),
        )

    async def send_chat_completion(
        self, request: Request, extra_fields: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Send the request; when the server refuses its dialect, try another and keep what is accepted."""
        first_dialect = dialect = self.dialect
        while True:
            can_change_guide = request.schema_text is not None and not self.is_guide_settled
            body = await asyncio.to_thread(
                build_body,
                request,
                self.settings,
                dialect,
                add_vision_id=self.add_vision_id,
                template_options=self.template_options,
                extra_fields=extra_fields,
            )
            key = compute_idempotency_key(request, body)
            max_tokens = request.prompt_tokens + request.sampling.max_new_tokens
            try:
                response = await self.client.send_request(
                    "chat/completions", body, idempotency_key=key, max_tokens=max_tokens
                )
            except RequestRefusedError as error:
                adapted = dialect.adapt_to(error.message, can_change_guide=can_change_guide)
                if adapted is None:
                    raise
                dialect = adapted
                continue
            self.is_guide_settled |= request.schema_text is not None
            if dialect != first_dialect:
                self.dialect = dialect
            return response

    async def send_for_vector(self, request: Request) -> dict[str, Any]:
        while True:
            dialect = self.dialect
            body = await asyncio.to_thread(
                build_embedding_body, request, self.settings, dialect, knows_model=self.keeps_sizes
            )
            key = compute_idempotency_key(request, body)
            try:
                return await self.client.send_request(
                    "embeddings", body, idempotency_key=key, max_tokens=request.prompt_tokens
                )
            except RequestRefusedError as error:
                adapted = dialect.adapt_to(error.message, can_change_guide=False)
                if adapted is None:
                    raise
                self.dialect = adapted

    def run_in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def metrics(self) -> Mapping[str, float]:
        return {
            **self.counts,
            "busy": self.in_flight,
            "slots": int(self.client.limiter.limit),
            "waiting": 0,
            "retries": self.client.retries,
        }

    def close(self) -> None:
        """Cancel the requests in flight; closed connections tell the server to stop computing."""
        self.run_in_loop(self.cancel_requests())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def cancel_requests(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()


def compute_idempotency_key(request: Request, body: bytes) -> str:
    """Equal for every attempt of one request and for no other request, so that a server may answer from memory."""
    return hashlib.blake2b(request.id.encode() + b"\0" + body, digest_size=16).hexdigest()
