"""Maps the coordinates and times in an answer to pixels and seconds of the original file.

A field holds a place or a time if its name says so (`bbox_2d`, `point_2d`: the names Qwen was trained on) or if the
schema does, with `x-means`: box, point, seconds or image. An object may name its picture in an `image` field, from 1.
Corners are put in order, coordinates outside the picture are clamped, and objects without area are dropped; each sets
a flag. Integers stay integers, so rounding moves them by at most half a pixel. Answers are mapped before they are
typed, because a column of JSON text may hold places too.
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
    """How the answer of one row is mapped."""

    meanings: Mapping[str, str]  # of fields, by name
    coordinate_system: CoordinateSystem | None  # known where the answer has places
    time_origin: TimeOrigin
    clips: Sequence[Clip]
    dropped: list[Any]
    flags: dict[str, None] = field(default_factory=dict)  # what was changed, in order

    def add_flag(self, flag: str, condition: bool = True) -> None:
        if condition:
            self.flags[flag] = None


def map_to_source(
    value: Any,
    schema: SchemaNode,
    *,
    coordinate_system: CoordinateSystem | None,
    clips: Sequence[Clip],
    time_origin: TimeOrigin = "clip",
    dropped: list[Any] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The mapped answer and its flags: reordered, clamped, dropped. Adds the elements of lists that are dropped."""
    dropped = [] if dropped is None else dropped
    mapping = GeometryMapping(find_field_meanings(schema), coordinate_system, time_origin, clips, dropped)
    if not clips or not set(mapping.meanings.values()) - {"image"}:
        return value, ()
    return _map_value(value, mapping), tuple(mapping.flags)


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


def find_whole_number_places(schema: SchemaNode) -> list[str]:
    """The fields that hold boxes or points in whole numbers.

    >>> box = {"type": "array", "items": {"type": "integer"}}
    >>> find_whole_number_places({"properties": {"bbox_2d": box}})
    ['bbox_2d']
    """
    meanings = find_field_meanings(schema)
    fields = [(name, part) for _, node in walk_schema(schema) for name, part in node.get("properties", {}).items()]
    names = (
        name
        for name, part in fields
        if meanings.get(name) in ("box", "point") and _has_whole_numbers(enter_schema(part, schema))
    )
    return list(dict.fromkeys(names))


def _has_whole_numbers(schema: SchemaCursor | None) -> bool:
    if schema is None:
        return False
    parts = (*schema.alternatives, *schema.prefix_items, schema.items)
    return schema.types == ["integer"] or any(_has_whole_numbers(part) for part in parts)


def _find_meaning(schema: SchemaCursor | None) -> str | None:
    """The `x-means` of a field, also where the field may be null or is a list."""
    if schema is None:
        return None
    nested = (_find_meaning(part) for part in (*schema.alternatives, schema.items))
    return schema.node.get("x-means") or next((meaning for meaning in nested if meaning), None)


def _map_value(value: Any, mapping: GeometryMapping) -> Any:
    """The value with its places mapped; None for an object that lies nowhere."""
    if isinstance(value, dict):
        return _map_object(value, mapping)
    if isinstance(value, list):
        return _keep_places(value, [_map_value(element, mapping) for element in value], mapping)
    return value


def _keep_places(elements: list[Any], mapped_elements: list[Any], mapping: GeometryMapping) -> list[Any]:
    pairs = list(zip(elements, mapped_elements, strict=True))
    mapping.dropped.extend(element for element, mapped in pairs if mapped is None and element is not None)
    return [mapped for element, mapped in pairs if mapped is not None or element is None]


def _map_object(value: dict[str, Any], mapping: GeometryMapping) -> dict[str, Any] | None:
    clip = _find_clip(value, mapping)
    result = {}
    for name, field_value in value.items():
        meaning = mapping.meanings.get(name, "image")
        if field_value is None or meaning == "image":
            result[name] = _map_value(field_value, mapping)
            if result[name] is None:
                mapping.dropped.append(field_value)
            continue
        result[name] = None if clip is None else _map_location(field_value, meaning, clip, mapping)
        if result[name] is None:
            mapping.add_flag("dropped")
            return None
    return result


def _find_clip(value: dict[str, Any], mapping: GeometryMapping) -> Clip | None:
    """The picture or video that an object is about; None if it names one that was not shown."""
    image_fields = [name for name, meaning in mapping.meanings.items() if meaning == "image"]
    number = int(next((value[name] for name in image_fields if value.get(name) is not None), 1))
    return mapping.clips[number - 1] if 1 <= number <= len(mapping.clips) else None


def _map_location(value: Any, meaning: str, clip: Clip, mapping: GeometryMapping) -> Any:
    """Map a box, a point, a time, or a list of them; None if nothing is left of it."""
    if isinstance(value, list) and (meaning == "seconds" or not value or isinstance(value[0], list)):
        locations = [_map_location(element, meaning, clip, mapping) for element in value]
        mapping.add_flag("dropped", None in locations)
        return _keep_places(value, locations, mapping)
    if meaning == "seconds":
        return _map_seconds(float(value), clip, mapping)
    if isinstance(value, dict):
        return _map_value(value, mapping)
    return _map_box_or_point(value, meaning, clip, mapping)


def _map_box_or_point(value: list[Any], meaning: str, clip: Clip, mapping: GeometryMapping) -> list[Any] | None:
    """Map x, y or x1, y1, x2, y2; None if no area is left or numbers are missing."""
    if len(value) != {"box": 4, "point": 2}[meaning] or None in value:
        return None
    scale = _get_scale(clip, mapping.coordinate_system)
    left, top, right, bottom = clip.source_region
    numbers = [
        float(number) * clip.source_region_size[index % 2] / scale[index % 2] + (left, top)[index % 2]
        for index, number in enumerate(value)
    ]
    if meaning == "box":
        x1, y1, x2, y2 = numbers
        ordered = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
        mapping.add_flag("reordered", ordered != numbers)
        numbers = ordered
    clamped = [
        min(max(number, (left, top)[index % 2]), (right, bottom)[index % 2]) for index, number in enumerate(numbers)
    ]
    mapping.add_flag("clamped", clamped != numbers)
    result = [
        round(number) if isinstance(original, int) else number for original, number in zip(value, clamped, strict=True)
    ]
    is_empty = meaning == "box" and (result[0] == result[2] or result[1] == result[3])
    return None if is_empty else result


def _get_scale(clip: Clip, coordinate_system: CoordinateSystem | None) -> tuple[int, int]:
    """The coordinates of the lower right corner of what was shown."""
    scales: dict[CoordinateSystem, tuple[int, int]] = {
        "pixels": clip.size,
        "pixels_of_original": clip.source_region_size,
        "thousandths": (1000, 1000),
        "fraction": (1, 1),
    }
    assert coordinate_system, "checked before the run"
    return scales[coordinate_system]


def _map_seconds(value: float, clip: Clip, mapping: GeometryMapping) -> float:
    """A time in the file, at the latest when the last shown frame ends."""
    if not clip.times:
        return value
    second = value + (clip.times[0] if mapping.time_origin == "clip" else 0)
    end = clip.times[-1] + (1 / clip.fps if clip.fps else 0)
    clamped = min(max(second, 0), end)
    mapping.add_flag("clamped", clamped != second)
    return value if clamped == value else round(clamped, 3)
