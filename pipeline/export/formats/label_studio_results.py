"""Turns an answer into the results of a prediction in Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from pipeline.export.class_names import ClassNames
from pipeline.export.formats.label_studio_config import FRAME_RATE, FREE_EVENT, Control
from pipeline.output.answer.annotations import Annotation, find_annotations
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.schema.json_schema import SchemaNode
from pipeline.truth.compared_fields import WHOLE_ANSWER

RESULT_TYPES = {"boxes": "rectanglelabels", "points": "keypointlabels", "events": "timelinelabels"}
PLACE_KINDS = {"boxes": "box", "points": "point", "events": "event"}
KEY_POINT_WIDTH = 0.5  # percent of the picture


class ResultBuilder:
    def __init__(self, controls: Sequence[Control], schema: SchemaNode | None, classes: ClassNames):
        self.controls, self.classes = controls, classes
        self.meanings = find_field_meanings(schema) if schema else {}

    def build(self, row: Mapping[str, Any], answer: Any, confidence: Any, kind: str) -> list[dict[str, Any]]:
        """Numbered, as results that belong to one region have one id."""
        results: list[dict[str, Any]] = []
        for control in self.controls:
            value, sureness = get_value(answer, control.name), get_value(confidence, control.name)
            if value is None:
                continue
            if control.field.kind in PLACE_KINDS:
                results += self.build_places(row, control, value, sureness, kind)
            else:
                score = {"score": round(sureness, 6)} if isinstance(sureness, float) else {}
                results.append({"id": control.name, **build_plain_result(control, value), "to_name": kind, **score})
        return results

    def build_places(
        self, row: Mapping[str, Any], control: Control, value: Any, confidence: Any, kind: str
    ) -> Iterator[dict[str, Any]]:
        wanted = PLACE_KINDS[control.field.kind]
        found = [each for each in find_annotations(value, self.meanings, confidence) if each.kind == wanted]
        if (wanted == "event") != (kind == "video"):
            found = []
        numbers = self.classes.find_numbers([each.label for each in found if wanted != "event"])
        for number, annotation in enumerate(found):
            score = {} if annotation.score is None else {"score": round(annotation.score, 6)}
            region = {"id": f"{control.name}-{number + 1}", "to_name": kind, **score}
            place = {"from_name": control.name, "type": RESULT_TYPES[control.field.kind]}
            if wanted == "event":
                yield {**region, **place, "value": describe_span(annotation)}
                if control.label_name:
                    text = {"from_name": f"{control.name}.{control.label_name}", "type": "textarea"}
                    yield {**region, **text, "value": {**describe_span(annotation), "text": [annotation.label]}}
            elif annotation.media_index < len(row["media"]):
                name = self.classes.names[numbers[number]]
                yield {**region, **place, **describe_place(row["media"], annotation, place["type"], name)}


def get_value(value: Any, path: str) -> Any:
    for name in path.split(".") if path != WHOLE_ANSWER else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def describe_span(annotation: Annotation) -> dict[str, Any]:
    """Frames count from 1."""
    start, end = (round(second * FRAME_RATE) + 1 for second in annotation.numbers)
    return {"ranges": [{"start": start, "end": end}], "timelinelabels": [FREE_EVENT]}


def describe_place(media: Sequence[Any], annotation: Annotation, kind: str, name: str) -> dict[str, Any]:
    size = media[annotation.media_index]["width"], media[annotation.media_index]["height"]
    left, top, *corner = (100 * number / size[index % 2] for index, number in enumerate(annotation.numbers))
    extent = (
        {"width": corner[0] - left, "height": corner[1] - top, "rotation": 0} if corner else {"width": KEY_POINT_WIDTH}
    )
    picture = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    page = {"item_index": annotation.media_index} if len(media) > 1 else {}
    return {**picture, **page, "value": {"x": left, "y": top, **extent, kind: [name]}}


def build_plain_result(control: Control, value: Any) -> dict[str, Any]:
    kind, name = control.field.kind, {"from_name": control.name}
    if kind == "choice":
        return {**name, "type": "choices", "value": {"choices": [format_value(value)]}}
    if kind == "number":
        return {**name, "type": "number", "value": {"number": float(value)}}
    values = value if isinstance(value, list) else [value]
    return {**name, "type": "textarea", "value": {"text": [format_value(each) for each in values]}}


def format_value(value: Any) -> str:
    """
    >>> format_value(True), format_value({"amount": Decimal("2.5000"), "day": date(2026, 3, 2)})
    ('true', '{"amount": "2.5", "day": "2026-03-02"}')
    """
    if isinstance(value, str):
        return value
    return (
        encode_scalar(value)
        if isinstance(value, date | Decimal)
        else json.dumps(value, ensure_ascii=False, default=encode_scalar)
    )


def encode_scalar(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return value.isoformat() if isinstance(value, date) else str(value)
