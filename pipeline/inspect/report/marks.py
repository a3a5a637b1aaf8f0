"""An answer, what its fields mean -> what can be drawn of it: boxes, points and stretches of time, with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LABEL_FIELDS = ("label", "what", "name", "kind", "text", "title", "description")  # which field of an object names it
MAX_LABEL_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Annotation:
    kind: Literal["box", "point", "event"]
    numbers: tuple[float, ...]  # pixels of the original, or seconds
    label: str
    media_index: int = 0  # which of the row's media, from zero


def find_annotations(answer: Any, field_meanings: Mapping[str, str]) -> list[Annotation]:
    """All places and times in an answer, in order."""
    return list(_walk_value(answer, field_meanings)) if field_meanings else []


def _walk_value(value: Any, field_meanings: Mapping[str, str]) -> Iterator[Annotation]:
    if isinstance(value, Mapping):
        yield from _read_object(value, field_meanings)
        for part in value.values():
            yield from _walk_value(part, field_meanings)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _walk_value(part, field_meanings)


def _read_object(value: Mapping[str, Any], field_meanings: Mapping[str, str]) -> Iterator[Annotation]:
    label = next((str(value[name]) for name in LABEL_FIELDS if isinstance(value.get(name), str)), "")[:MAX_LABEL_LENGTH]
    number = next(
        (value[n] for n, what in field_meanings.items() if what == "image" and isinstance(value.get(n), int)), 1
    )
    seconds = []
    for name, part in value.items():
        what = field_meanings.get(name)
        if what == "seconds" and isinstance(part, (int, float)):
            seconds.append(float(part))
        elif what in ("box", "point") and part:
            for place in part if isinstance(part[0], (list, tuple)) else [part]:
                if numbers := _parse_numbers(place, {"box": 4, "point": 2}[what]):
                    yield Annotation("box" if what == "box" else "point", numbers, label or name, number - 1)
    if seconds:
        yield Annotation("event", (min(seconds), max(seconds)), label, number - 1)


def _parse_numbers(values: Sequence[Any], wanted_count: int) -> tuple[float, ...]:
    good = len(values) == wanted_count and all(isinstance(each, (int, float)) for each in values)
    return tuple(float(each) for each in values) if good else ()
