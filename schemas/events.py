"""Events in a video with start and end, in seconds of the original file even if only a part of it was sampled.

answer: struct<events: list<struct<what: string, start: double, end: double>>>
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=86_400, json_schema_extra={"x-means": "seconds"})]


class Event(BaseModel):
    model_config = ConfigDict(extra="forbid")

    what: str = Field(
        min_length=1,
        max_length=200,
        description="what happens, in one sentence",
        json_schema_extra={"x-compare": "text"},
    )
    start: Seconds = Field(description="when it begins, in seconds")
    end: Seconds = Field(description="when it is over, in seconds")


class Events(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = "List what happens in this video, in order, and when."
    example: ClassVar[Any] = {"events": [{"what": "A car turns left at the crossing.", "start": 2.5, "end": 6.0}]}

    events: list[Event] = Field(description="in the order in which they begin; empty if nothing happens")

    def violations(self) -> Iterator[str]:
        for index, event in enumerate(self.events, 1):
            if event.end < event.start:
                yield f"event {index} ends at {event.end} s, before it begins at {event.start} s"
        for index, (one, other) in enumerate(pairwise(self.events), 1):
            if other.start < one.start:
                yield f"event {index + 1} begins at {other.start} s, before event {index} at {one.start} s"
