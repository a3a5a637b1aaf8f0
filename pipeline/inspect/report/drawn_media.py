"""Lays out boxes, points and time spans over previews. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.report.page import escape_control_characters
from pipeline.inspect.report.previews import MediaPreview
from pipeline.output.answer.annotations import Annotation

COLOUR_COUNT = 8
MAX_TICKS, TICK_AREA_SHARE = 7, 0.95
CHARACTER_WIDTH = 0.56  # about, in units of the font size
TIMELINE_LENGTH, TIMELINE_CHARACTER_WIDTH = 1000, 9.0  # in units of the time line's drawing


class Palette(dict[str, int]):
    """A colour number for each label, the same on every card."""

    def __missing__(self, label: str) -> int:
        self[label] = len(self) % COLOUR_COUNT
        return self[label]


@dataclass
class AnnotatedMedia:
    """A preview and what is drawn over it, in pixels of the original; events of a video lie on a time line."""

    preview: MediaPreview
    unit: float  # the font size
    boxes: list[Mapping[str, Any]] = field(default_factory=list)
    points: list[Mapping[str, Any]] = field(default_factory=list)
    labels: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    ticks: list[Mapping[str, Any]] = field(default_factory=list)


def annotate_media(
    preview: MediaPreview, annotations: Sequence[Annotation], palette: Palette, *, wide: bool = False
) -> AnnotatedMedia:
    """A wide preview is shown larger, so its labels may be smaller in its own pixels."""
    unit = round(max(preview.size) / (56 if wide else 34), 2)
    media = AnnotatedMedia(preview, unit)
    events = [annotation for annotation in annotations if annotation.kind == "event"]
    for annotation in annotations:
        if annotation.kind == "event":
            continue
        colour = {"colour": palette[annotation.label], "verdict": annotation.verdict}
        if annotation.kind == "box":
            left, top, right, bottom = annotation.numbers
            media.boxes.append({"x": left, "y": top, "width": right - left, "height": bottom - top, **colour})
        else:
            media.points.append({"x": annotation.numbers[0], "y": annotation.numbers[1], **colour})
        if annotation.label:
            media.labels.append({**place_label(annotation, preview.size, unit), **colour})
    if events:
        length_s = max(preview.duration_s, *(event.numbers[1] for event in events), 1e-3)
        media.events = [{**place_event(event, length_s), "colour": n % COLOUR_COUNT} for n, event in enumerate(events)]
        media.ticks = [
            {"x": round(TIMELINE_LENGTH * second / length_s, 1), "label": f"{second:g} s"}
            for second in choose_ticks(length_s)
        ]
    return media


def choose_ticks(length_s: float) -> list[float]:
    """Round seconds along a time line; the last one keeps away from the end, where its label would be cut off.

    >>> choose_ticks(4.88), choose_ticks(130.0)
    ([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0])
    """
    decade = 10.0 ** math.floor(math.log10(length_s))
    step = next(decade * factor for factor in (0.2, 0.5, 1.0, 2.0) if length_s / (decade * factor) <= MAX_TICKS)
    return [round(number * step, 6) for number in range(int(TICK_AREA_SHARE * length_s / step) + 1)]


def place_label(annotation: Annotation, size: tuple[int, int], unit: float) -> Mapping[str, Any]:
    """Above a box if there is room, otherwise inside it; beside a point; never beyond the image."""
    text_length = len(escape_control_characters(annotation.shown_label))
    width, height = (text_length * CHARACTER_WIDTH + 0.6) * unit, 1.4 * unit
    left, top = annotation.numbers[:2]
    if annotation.kind == "box" and top >= height:
        top -= height
    elif annotation.kind == "point":
        left += unit
    left, top = max(0.0, min(left, size[0] - width)), max(0.0, min(top, size[1] - height))
    placed = {"x": left, "y": top, "width": width, "height": height}
    return {name: round(value, 2) for name, value in placed.items()} | {"label": annotation.shown_label}


def place_event(annotation: Annotation, length_s: float) -> Mapping[str, Any]:
    """A span of the time line. Its label stands inside it or on the side with more room, and is cut to fit."""
    start, end = (round(TIMELINE_LENGTH * max(0.0, second) / length_s, 1) for second in annotation.numbers)
    width = max(end - start, 4.0)
    room = {"inside": width - 16, "after": TIMELINE_LENGTH - start - width - 8, "before": start - 8}
    text = annotation.shown_label
    text_width = len(text) * TIMELINE_CHARACTER_WIDTH
    side = "inside" if text_width <= room["inside"] else max(room, key=lambda name: room[name])
    max_length = int(room[side] / TIMELINE_CHARACTER_WIDTH)
    label = text if len(text) <= max_length else f"{text[: max(max_length - 3, 0)]}..."
    label_x = {"inside": start + 8, "after": start + width + 8, "before": start - 8}[side]
    span = {"x": start, "width": width, "full_label": text, "verdict": annotation.verdict}
    return {**span, "label_x": label_x, "side": side, "label": label}
