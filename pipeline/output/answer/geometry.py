"""An answer in the numbers a model speaks -> the same answer in pixels and seconds of the original file.

Which fields are places is said by name (`bbox_2d`, `point_2d`: what Qwen was trained on) or by `x-means` in the schema
(box, point, seconds, image). An object that may speak of several pictures says which by its `image`, counted from 1.
Corners are put in order, what lies outside is clamped, what has no area left is dropped; each with a flag.
Whole numbers stay whole: the rounding is at most half a pixel of the original. Answers are mapped before they are
typed: a column of JSON text holds places, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.schema.json_schema import Node, children, resolve
from pipeline.types import Clip

Coordinates = Literal["pixels", "thousandths"]  # of the resized picture, or 0..1000 of any
Times = Literal["clip", "source"]  # seconds since the first frame shown, or into the file
NAMES = {"bbox_2d": "box", "point_2d": "point"}


@dataclass(frozen=True, slots=True)
class Map:
    """How the answer of one row is mapped; `flags` collects what had to be done, in order."""

    means: Mapping[str, str]
    coordinates: Coordinates
    times: Times
    clips: Sequence[Clip]
    flags: dict[str, None] = field(default_factory=dict)


def to_source(
    value: Any, schema: Node, *, coordinates: Coordinates, clips: Sequence[Clip], times: Times = "clip"
) -> tuple[Any, tuple[str, ...]]:
    """The answer in the original's numbers, and the flags: reordered, clamped, dropped."""
    where = Map(meanings(schema), coordinates, times, clips)
    if not clips or not set(where.means.values()) - {"image"}:
        return value, ()
    return _walk(value, where), tuple(where.flags)


def meanings(schema: Node, root: Node | None = None) -> dict[str, str]:
    """Field name -> box, point, seconds or image, for the fields of a schema that say where or when.

    >>> meanings({"type": "object", "properties": {"bbox_2d": {"type": "array"}, "label": {"type": "string"}}})
    {'bbox_2d': 'box'}
    """
    root = schema if root is None else root
    found: dict[str, str] = {}
    for name, part in schema.get("properties", {}).items():
        means = _meant(part, root, ()) or NAMES.get(name)
        found |= {name: means} if means else {}
    for _, part in children(schema):
        found |= meanings(part, root) if isinstance(part, dict) else {}
    return found


def _meant(node: Any, root: Node, above: tuple[str, ...]) -> str | None:
    """What a field is said to mean, also where it may be null or is a list."""
    if not isinstance(node, dict) or node.get("$ref") in above:
        return None
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = resolve(node, root)
    inner = (*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items"))
    return node.get("x-means") or next((means for part in inner if (means := _meant(part, root, above))), None)


def _walk(value: Any, where: Map) -> Any:
    """The value with its places mapped; None in place of an object that lies nowhere."""
    if isinstance(value, dict):
        return _object(value, where)
    if isinstance(value, list):
        parts = [(part, _walk(part, where)) for part in value]
        return [after for before, after in parts if after is not None or before is None]
    return value


def _object(value: dict[str, Any], where: Map) -> dict[str, Any] | None:
    clip = _clip(value, where)
    result = {}
    for name, part in value.items():
        means = where.means.get(name, "image")
        if part is None or means == "image":
            result[name] = _walk(part, where)
            continue
        result[name] = None if clip is None else _place(part, means, clip, where)
        if result[name] is None:
            where.flags["dropped"] = None
            return None
    return result


def _clip(value: dict[str, Any], where: Map) -> Clip | None:
    """The picture or video that an object speaks of; None if it names one that was not shown."""
    names = [name for name, means in where.means.items() if means == "image"]
    said = int(next((value[name] for name in names if value.get(name) is not None), 1))
    return where.clips[said - 1] if 1 <= said <= len(where.clips) else None


def _place(value: Any, means: str, clip: Clip, where: Map) -> Any:
    if isinstance(value, list) and (means == "seconds" or not value or isinstance(value[0], list)):
        places = [_place(part, means, clip, where) for part in value]
        where.flags.update({"dropped": None} if None in places else {})
        return [place for place in places if place is not None]
    if means == "seconds":
        return _seconds(float(value), clip, where)
    if isinstance(value, dict):
        return _walk(value, where)
    return _inside(value, means, clip, where)


def _inside(value: list[Any], means: str, clip: Clip, where: Map) -> list[Any] | None:
    """One box or point in the original; None where nothing is left of it."""
    if len(value) != {"box": 4, "point": 2}[means] or None in value:
        return None
    scale = clip.size if where.coordinates == "pixels" else (1000, 1000)
    ends = [float(number) * clip.source_size[axis % 2] / scale[axis % 2] for axis, number in enumerate(value)]
    if means == "box":
        ordered = [min(ends[0], ends[2]), min(ends[1], ends[3]), max(ends[0], ends[2]), max(ends[1], ends[3])]
        where.flags.update({} if ordered == ends else {"reordered": None})
        ends = ordered
    inside = [min(max(number, 0), clip.source_size[axis % 2]) for axis, number in enumerate(ends)]
    where.flags.update({} if inside == ends else {"clamped": None})
    result = [round(number) if isinstance(said, int) else number for said, number in zip(value, inside, strict=True)]
    empty = means == "box" and (result[0] == result[2] or result[1] == result[3])
    return None if empty else result


def _seconds(value: float, clip: Clip, where: Map) -> float:
    """A moment of the file, no later than the last frame shown lasts."""
    if not clip.times:
        return value
    moment = value + (clip.times[0] if where.times == "clip" else 0)
    last = clip.times[-1] + (1 / clip.fps if clip.fps else 0)
    inside = min(max(moment, 0), last)
    where.flags.update({} if inside == moment else {"clamped": None})
    return value if inside == value else round(inside, 3)
