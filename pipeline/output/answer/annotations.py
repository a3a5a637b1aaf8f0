"""Finds boxes, points and time spans in an answer, with their labels and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.output.answer.confidence import SCORE

LABEL_FIELDS = (  # the first that an object has
    *("label", "class", "category", "what", "name", "kind", "text", "title", "description"),
)
MAX_SHOWN_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Annotation:
    kind: Literal["box", "point", "event"]
    numbers: tuple[float, ...]  # pixels of the original, or seconds
    label: str
    media_index: int = 0
    score: float | None = None  # how sure the model was of the whole object
    second: float | None = None  # of a box or a point: when it is there
    verdict: Literal["", "missed", "spurious"] = ""  # where there is a truth

    @property
    def shown_label(self) -> str:
        label = self.label[:MAX_SHOWN_LENGTH]
        return f"{self.verdict}: {label}" if self.verdict else label


def find_annotations(answer: Any, field_meanings: Mapping[str, str], confidence: Any = None) -> list[Annotation]:
    """The annotations of an answer, in order. Without the answer's confidence they have no scores."""
    return list(_walk_value(answer, confidence, field_meanings)) if field_meanings else []


def _walk_value(value: Any, confidence: Any, field_meanings: Mapping[str, str]) -> Iterator[Annotation]:
    if isinstance(value, Mapping):
        parts = confidence if isinstance(confidence, Mapping) else {}
        yield from _read_object(value, parts.get(SCORE), field_meanings)
        for name, field_value in value.items():
            yield from _walk_value(field_value, parts.get(name), field_meanings)
    elif isinstance(value, (list, tuple)):
        has_all = isinstance(confidence, (list, tuple)) and len(confidence) == len(value)
        for element, part in zip(value, confidence if has_all else [None] * len(value), strict=True):
            yield from _walk_value(element, part, field_meanings)


def _read_object(
    value: Mapping[str, Any], score: float | None, field_meanings: Mapping[str, str]
) -> Iterator[Annotation]:
    label = next((value[name] for name in LABEL_FIELDS if isinstance(value.get(name), str)), "")
    image_fields = (name for name, meaning in field_meanings.items() if meaning == "image")
    image_index = next((value[name] for name in image_fields if isinstance(value.get(name), int)), 1) - 1
    values = {name: part for name, part in value.items() if name in field_meanings}
    seconds = [
        float(part)
        for name, part in values.items()
        if field_meanings[name] == "seconds" and isinstance(part, (int, float))
    ]
    second = min(seconds, default=None)
    for name, field_value in values.items():
        meaning = field_meanings[name]
        if meaning in ("box", "point") and field_value:
            for location in field_value if isinstance(field_value[0], (list, tuple)) else [field_value]:
                if numbers := _parse_numbers(location, {"box": 4, "point": 2}[meaning]):
                    kind: Literal["box", "point"] = "box" if meaning == "box" else "point"
                    yield Annotation(kind, numbers, label or name, image_index, score, second)
    if seconds:
        yield Annotation("event", (min(seconds), max(seconds)), label, image_index, score)


def _parse_numbers(values: Sequence[Any], wanted_count: int) -> tuple[float, ...]:
    is_valid = len(values) == wanted_count and all(isinstance(value, (int, float)) for value in values)
    return tuple(map(float, values)) if is_valid else ()
