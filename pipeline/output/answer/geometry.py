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
from typing import Any

from pipeline.schema.json_schema import SchemaCursor, SchemaNode, enter_schema, walk_schema
from pipeline.types import Clip, CoordinateSystem, TimeOrigin

MEANING_BY_FIELD_NAME = {"bbox_2d": "box", "point_2d": "point"}


@dataclass(frozen=True, slots=True)
class GeometryMapping:
    """How the answer of one row is mapped; `flags` collects what had to be done, in order."""

    meanings: Mapping[str, str]
    coordinate_system: CoordinateSystem
    time_origin: TimeOrigin
    clips: Sequence[Clip]
    flags: dict[str, None] = field(default_factory=dict)


def map_to_source(
    value: Any,
    schema: SchemaNode,
    *,
    coordinate_system: CoordinateSystem,
    clips: Sequence[Clip],
    time_origin: TimeOrigin = "clip",
) -> tuple[Any, tuple[str, ...]]:
    """The answer in the original's numbers, and the flags: reordered, clamped, dropped."""
    where = GeometryMapping(find_field_meanings(schema), coordinate_system, time_origin, clips)
    if not clips or not set(where.meanings.values()) - {"image"}:
        return value, ()
    return _map_value(value, where), tuple(where.flags)


def find_field_meanings(schema: SchemaNode) -> dict[str, str]:
    """Field names and their meaning (box, point, seconds or image), for fields that hold a place or a time.

    >>> find_field_meanings({"properties": {"bbox_2d": {"type": "array"}, "label": {"type": "string"}}})
    {'bbox_2d': 'box'}
    """
    meanings: dict[str, str] = {}
    for _, node in walk_schema(schema):
        for name, part in node.get("properties", {}).items():
            meaning = _find_meaning(enter_schema(part, schema)) or MEANING_BY_FIELD_NAME.get(name)
            meanings |= {name: meaning} if meaning else {}
    return meanings


def _find_meaning(schema: SchemaCursor | None) -> str | None:
    """The `x-means` of a field, also where the field may be null or is a list."""
    if schema is None:
        return None
    nested = (_find_meaning(part) for part in (*schema.alternatives, schema.items))
    return schema.node.get("x-means") or next((meaning for meaning in nested if meaning), None)


def _map_value(value: Any, mapping: GeometryMapping) -> Any:
    """The value with its places mapped; None in place of an object that lies nowhere."""
    if isinstance(value, dict):
        return _map_object(value, mapping)
    if isinstance(value, list):
        parts = [(part, _map_value(part, mapping)) for part in value]
        return [after for before, after in parts if after is not None or before is None]
    return value


def _map_object(value: dict[str, Any], mapping: GeometryMapping) -> dict[str, Any] | None:
    clip = _find_clip(value, mapping)
    result = {}
    for name, part in value.items():
        means = mapping.meanings.get(name, "image")
        if part is None or means == "image":
            result[name] = _map_value(part, mapping)
            continue
        result[name] = None if clip is None else _map_location(part, means, clip, mapping)
        if result[name] is None:
            mapping.flags["dropped"] = None
            return None
    return result


def _find_clip(value: dict[str, Any], mapping: GeometryMapping) -> Clip | None:
    """The picture or video that an object speaks of; None if it names one that was not shown."""
    names = [name for name, means in mapping.meanings.items() if means == "image"]
    said = int(next((value[name] for name in names if value.get(name) is not None), 1))
    return mapping.clips[said - 1] if 1 <= said <= len(mapping.clips) else None


def _map_location(value: Any, meaning: str, clip: Clip, mapping: GeometryMapping) -> Any:
    if isinstance(value, list) and (meaning == "seconds" or not value or isinstance(value[0], list)):
        places = [_map_location(part, meaning, clip, mapping) for part in value]
        mapping.flags.update({"dropped": None} if None in places else {})
        return [place for place in places if place is not None]
    if meaning == "seconds":
        return _map_seconds(float(value), clip, mapping)
    if isinstance(value, dict):
        return _map_value(value, mapping)
    return _map_box_or_point(value, meaning, clip, mapping)


def _map_box_or_point(value: list[Any], meaning: str, clip: Clip, mapping: GeometryMapping) -> list[Any] | None:
    """One box or point in the original; None where nothing is left of it."""
    if len(value) != {"box": 4, "point": 2}[meaning] or None in value:
        return None
    scale = clip.size if mapping.coordinate_system == "pixels" else (1000, 1000)
    left, top, right, bottom = clip.source_region
    origin, extent = (left, top), clip.source_region_size
    ends = [float(number) * extent[axis % 2] / scale[axis % 2] + origin[axis % 2] for axis, number in enumerate(value)]
    if meaning == "box":
        ordered = [min(ends[0], ends[2]), min(ends[1], ends[3]), max(ends[0], ends[2]), max(ends[1], ends[3])]
        mapping.flags.update({} if ordered == ends else {"reordered": None})
        ends = ordered
    inside = [min(max(number, origin[axis % 2]), (right, bottom)[axis % 2]) for axis, number in enumerate(ends)]
    mapping.flags.update({} if inside == ends else {"clamped": None})
    result = [round(number) if isinstance(said, int) else number for said, number in zip(value, inside, strict=True)]
    empty = meaning == "box" and (result[0] == result[2] or result[1] == result[3])
    return None if empty else result


def _map_seconds(value: float, clip: Clip, mapping: GeometryMapping) -> float:
    """A moment of the file, no later than the last frame shown lasts."""
    if not clip.times:
        return value
    moment = value + (clip.times[0] if mapping.time_origin == "clip" else 0)
    last = clip.times[-1] + (1 / clip.fps if clip.fps else 0)
    inside = min(max(moment, 0), last)
    mapping.flags.update({} if inside == moment else {"clamped": None})
    return value if inside == value else round(inside, 3)
