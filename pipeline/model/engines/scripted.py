"""Request -> Reply by rule: an engine without a model, for tests of everything around one.

The first rule whose text stands in the prompt gives the reply; `{id}` and `{prompt}` in it are
filled. Imports no torch. A row takes `delay_ms` and `slots` rows are answered at once, so a test
can make it as slow as a model and as much out of order as it likes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Literal

from pipeline.job.spec import EngineSettings, Job, PositiveInt, define_key
from pipeline.model.engines.base import Engine, EngineType
from pipeline.types import Failure, Reply, Request

STEP_S = 0.01  # as long as a step of decoding may take


class ScriptedSettings(EngineSettings):
    kind: Literal["scripted"] = define_key("replies by rule, for tests of everything around the model")
    replies: dict[str, str] = define_key("text in the prompt -> reply; {id} and {prompt} are filled", {})
    default: str = define_key("the reply when no rule fits", "{prompt}")
    delay_ms: float = define_key("service time of a row", 0.0, ge=0, affects_answers=False)
    slots: PositiveInt = define_key("rows answered at once", 8, affects_answers=False)


class ScriptedEngine:
    def __init__(self, settings: ScriptedSettings):
        self.settings = settings
        self.waiting: deque[Request] = deque()
        self.busy: deque[tuple[float, Request]] = deque()  # with the time each is due, earliest first
        self.answered_count = 0

    def has_room(self) -> bool:
        return len(self.waiting) < self.settings.slots

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> list[Reply | Failure]:
        while self.waiting and len(self.busy) < self.settings.slots:
            self.busy.append((time.monotonic() + self.settings.delay_ms / 1000, self.waiting.popleft()))
        if self.busy:  # with a slot free, whoever comes meanwhile must not wait until another row is done
            longest = STEP_S if len(self.busy) < self.settings.slots else math.inf
            time.sleep(min(longest, max(0.0, self.busy[0][0] - time.monotonic())))
        replies: list[Reply | Failure] = []
        while self.busy and self.busy[0][0] <= time.monotonic():
            replies.append(self.build_reply(self.busy.popleft()[1]))
        self.answered_count += len(replies)
        return replies

    def build_reply(self, request: Request) -> Reply:
        prompt = "\n".join(part for turn in request.turns for part in turn.parts if isinstance(part, str))
        rules = (reply for text, reply in self.settings.replies.items() if text in prompt)
        # not str.format: a reply is often JSON, and its braces are its own
        text = next(rules, self.settings.default).replace("{id}", request.id).replace("{prompt}", prompt)
        return Reply(request.id, text, output_tokens=len(text.split()))

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

    def open(self, job: Job) -> Engine:
        assert isinstance(job.engine, ScriptedSettings)
        return ScriptedEngine(job.engine)

    def count_slots(self, job: Job) -> int:
        assert isinstance(job.engine, ScriptedSettings)
        return job.engine.slots
