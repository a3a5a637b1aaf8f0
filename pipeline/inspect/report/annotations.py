"""Finds what can be drawn of an answer: boxes, points and time spans, each with a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LABEL_FIELDS = ("label", "what", "name", "kind", "text", "title", "description")  # the first that an object has
MAX_LABEL_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Annotation:
    kind: Literal["box", "point", "event"]
    numbers: tuple[float, ...]  # pixels of the original, or seconds
    label: str
    media_index: int = 0


def find_annotations(answer: Any, field_meanings: Mapping[str, str]) -> list[Annotation]:
    """The annotations of an answer, in order."""
    return list(_walk_value(answer, field_meanings)) if field_meanings else []


def _walk_value(value: Any, field_meanings: Mapping[str, str]) -> Iterator[Annotation]:
    if isinstance(value, Mapping):
        yield from _read_object(value, field_meanings)
        for field_value in value.values():
            yield from _walk_value(field_value, field_meanings)
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _walk_value(element, field_meanings)


def _read_object(value: Mapping[str, Any], field_meanings: Mapping[str, str]) -> Iterator[Annotation]:
    label = next((value[name] for name in LABEL_FIELDS if isinstance(value.get(name), str)), "")[:MAX_LABEL_LENGTH]
    image_fields = (name for name, meaning in field_meanings.items() if meaning == "image")
    image_number = next((value[name] for name in image_fields if isinstance(value.get(name), int)), 1)
    seconds = []
    for name, field_value in value.items():
        meaning = field_meanings.get(name)
        if meaning == "seconds" and isinstance(field_value, (int, float)):
            seconds.append(float(field_value))
        elif meaning in ("box", "point") and field_value:
            for location in field_value if isinstance(field_value[0], (list, tuple)) else [field_value]:
                if numbers := _parse_numbers(location, {"box": 4, "point": 2}[meaning]):
                    kind: Literal["box", "point"] = "box" if meaning == "box" else "point"
                    yield Annotation(kind, numbers, label or name, image_number - 1)
    if seconds:
        yield Annotation("event", (min(seconds), max(seconds)), label, image_number - 1)


def _parse_numbers(values: Sequence[Any], wanted_count: int) -> tuple[float, ...]:
    is_valid = len(values) == wanted_count and all(isinstance(value, (int, float)) for value in values)
    return tuple(float(value) for value in values) if is_valid else ()
