"""An answer, what its fields mean -> what can be drawn of it: boxes, points and stretches of time, with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LABELS = ("label", "what", "name", "kind", "text", "title", "description")  # which field of an object names it
LONGEST_LABEL = 60


@dataclass(frozen=True, slots=True)
class Mark:
    kind: Literal["box", "point", "event"]
    numbers: tuple[float, ...]  # pixels of the original, or seconds
    label: str
    medium: int = 0  # which of the row's media, from zero


def marks(answer: Any, means: Mapping[str, str]) -> list[Mark]:
    """All places and times in an answer, in order."""
    return list(_walk(answer, means)) if means else []


def _walk(value: Any, means: Mapping[str, str]) -> Iterator[Mark]:
    if isinstance(value, Mapping):
        yield from _object(value, means)
        for part in value.values():
            yield from _walk(part, means)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _walk(part, means)


def _object(value: Mapping[str, Any], means: Mapping[str, str]) -> Iterator[Mark]:
    label = next((str(value[name]) for name in LABELS if isinstance(value.get(name), str)), "")[:LONGEST_LABEL]
    number = next((value[n] for n, what in means.items() if what == "image" and isinstance(value.get(n), int)), 1)
    seconds = []
    for name, part in value.items():
        what = means.get(name)
        if what == "seconds" and isinstance(part, (int, float)):
            seconds.append(float(part))
        elif what in ("box", "point") and part:
            for place in part if isinstance(part[0], (list, tuple)) else [part]:
                if numbers := _numbers(place, {"box": 4, "point": 2}[what]):
                    yield Mark("box" if what == "box" else "point", numbers, label or name, number - 1)
    if seconds:
        yield Mark("event", (min(seconds), max(seconds)), label, number - 1)


def _numbers(place: Sequence[Any], wanted: int) -> tuple[float, ...]:
    good = len(place) == wanted and all(isinstance(each, (int, float)) for each in place)
    return tuple(float(each) for each in place) if good else ()
