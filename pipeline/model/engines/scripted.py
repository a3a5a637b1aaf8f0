"""Replies by rule and without a model, for tests of everything around one.

The first rule whose text occurs in the prompt gives the reply. `{id}` and `{prompt}` in a reply are filled in. A row
takes `delay_ms`, `slots` rows are answered at once, and a replica starts in `start_ms`, so that a test can make the
engine slow. Of a prompt's continuations, the one that the reply would be is nine times as probable as any other. The
vector of a row is a hash of the reply: equal replies have equal vectors.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Literal

import numpy as np

from pipeline.job.key_types import PositiveInt, define_key
from pipeline.job.spec import EngineSettings, Job
from pipeline.model.engines.base import Engine, EngineType
from pipeline.types import Failure, Reply, Request

VECTOR_WIDTH = 4096
MAX_STEP_S = 0.01  # while a slot is free, so that a new request does not wait long


class ScriptedSettings(EngineSettings):
    kind: Literal["scripted"] = define_key("replies by rule, for tests of everything around the model")
    replies: dict[str, str] = define_key("text in the prompt -> reply; {id} and {prompt} are filled", {})
    default: str = define_key("the reply when no rule fits", "{prompt}")
    delay_ms: float = define_key("service time of a row", 0.0, ge=0, affects_answers=False)
    slots: PositiveInt = define_key("rows answered at once", 8, affects_answers=False)
    start_ms: float = define_key("time that a replica takes to start", 0.0, ge=0, affects_answers=False)


class ScriptedEngine:
    def __init__(self, settings: ScriptedSettings):
        self.settings = settings
        self.waiting: deque[Request] = deque()
        self.busy: deque[tuple[float, Request]] = deque()  # with the time when the reply is due, in order
        self.answered_count = 0

    def has_room(self) -> bool:
        return len(self.waiting) < self.settings.slots

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> list[Reply | Failure]:
        while self.waiting and len(self.busy) < self.settings.slots:
            self.busy.append((time.monotonic() + self.settings.delay_ms / 1000, self.waiting.popleft()))
        if self.busy:
            longest_wait_s = MAX_STEP_S if len(self.busy) < self.settings.slots else math.inf
            time.sleep(min(longest_wait_s, max(0.0, self.busy[0][0] - time.monotonic())))
        replies: list[Reply | Failure] = []
        while self.busy and self.busy[0][0] <= time.monotonic():
            replies.append(self.build_reply(self.busy.popleft()[1]))
        self.answered_count += len(replies)
        return replies

    def build_reply(self, request: Request) -> Reply:
        prompt = "\n".join(part for turn in request.turns for part in turn.parts if isinstance(part, str))
        if request.continuations:
            said = [self.find_text(request.id, prompt + part.question) for part in request.continuations]
            pairs = zip(said, request.continuations, strict=True)
            logprobs = [math.log(0.9 if text == part.text else 0.1) for text, part in pairs]
            return Reply(request.id, "", continuation_logprobs=tuple(logprobs))
        text = self.find_text(request.id, prompt)
        if request.pooling:
            digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
            return Reply(request.id, "", vector=np.resize(digest, VECTOR_WIDTH).astype(np.float32) - 128)
        return Reply(request.id, text, output_tokens=len(text.split()))

    def find_text(self, request_id: str, prompt: str) -> str:
        rules = (reply for text, reply in self.settings.replies.items() if text in prompt)
        # not str.format: the braces of a JSON reply are no placeholders
        return next(rules, self.settings.default).replace("{id}", request_id).replace("{prompt}", prompt)

    def metrics(self) -> Mapping[str, float]:
        return {
            "rows": self.answered_count,
            "slots": self.settings.slots,
            "busy": len(self.busy),
            "waiting": len(self.waiting),
        }

    def close(self) -> None:
        self.waiting.clear()
        self.busy.clear()


class ScriptedEngineType(EngineType):
    Settings = ScriptedSettings
    abilities = frozenset({"choices", "embeddings", "vision_embeddings"})

    def open(self, job: Job) -> Engine:
        assert isinstance(job.engine, ScriptedSettings)
        time.sleep(job.engine.start_ms / 1000)
        return ScriptedEngine(job.engine)

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, ScriptedSettings)
        return job.engine.slots
