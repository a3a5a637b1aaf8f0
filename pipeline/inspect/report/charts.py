"""Lays out the charts and the annotations of the report. Only numbers come from here; the template draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.figures import count_by_bin
from pipeline.inspect.report.annotations import Annotation
from pipeline.inspect.report.page import escape_control_characters
from pipeline.inspect.report.previews import MediaPreview, PreviewImage
from pipeline.inspect.report.statistics import LATENCY_BINS_PER_DECADE
from pipeline.types import Size

BAR_WIDTH, BIN_COUNT, COLOUR_COUNT = 150, 8, 8
MAX_TICKS, TICK_AREA_SHARE = 7, 0.95
CHARACTER_WIDTH = 0.56  # about, in units of the font size
TIMELINE_LENGTH, TIMELINE_CHARACTER_WIDTH = 1000, 9.0  # in units of the time line's drawing


@dataclass(frozen=True, slots=True)
class ChartBar:
    label: str
    width: float
    value: str


def build_bars(counts: Mapping[str, float], value_format: str = "{:,.0f}") -> list[ChartBar]:
    longest = max(counts.values(), default=0) or 1
    return [
        ChartBar(label, round(BAR_WIDTH * count / longest, 1), value_format.format(count))
        for label, count in counts.items()
    ]


def build_histogram(counts: Counter[int], unit: str = "") -> list[ChartBar]:
    bars = {}
    for first, last, count in count_by_bin(counts, BIN_COUNT) if counts else ():
        bars[f"{first:,}{unit}" if first == last else f"{first:,} to {last:,}{unit}"] = float(count)
    return build_bars(bars)


def build_latency_histogram(counts: Counter[int]) -> list[ChartBar]:
    """A histogram of latencies with equal steps of the logarithm.

    >>> [(bar.label, bar.value) for bar in build_latency_histogram(Counter({40: 3, 46: 1, 60: 1}))]
    [('0.1 to 0.141 s', '3'), ('0.141 to 0.2 s', '0'), ('0.2 to 0.282 s', '1'), ('0.282 to 0.398 s', '0'), \
('0.398 to 0.562 s', '0'), ('0.562 to 0.794 s', '0'), ('0.794 to 1.12 s', '1')]
    """
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / BIN_COUNT)
    bins = [sum(counts[n] for n in range(first, first + width)) for first in range(low, high + 1, width)]
    edges = [f"{10 ** ((low + n * width) / LATENCY_BINS_PER_DECADE) / 1000:.3g}" for n in range(len(bins) + 1)]
    return build_bars({f"{edges[n]} to {edges[n + 1]} s": float(count) for n, count in enumerate(bins)})


class Palette(dict[str, int]):
    """A colour number for each label, the same on every card."""

    def __missing__(self, label: str) -> int:
        self[label] = len(self) % COLOUR_COUNT
        return self[label]


@dataclass
class AnnotatedMedia:
    """A preview and what is drawn over it, in pixels of the original; events of a video lie on a time line."""

    kind: str
    name: str
    size: Size
    stills: tuple[PreviewImage, ...]
    missing: str
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
    media = AnnotatedMedia(preview.kind, preview.name, preview.size, preview.stills, preview.missing, unit)
    events = [annotation for annotation in annotations if annotation.kind == "event"]
    for annotation in annotations:
        if annotation.kind == "event":
            continue
        colour = {"colour": palette[annotation.label]}
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


def place_label(annotation: Annotation, size: Size, unit: float) -> Mapping[str, Any]:
    """Above a box if there is room, otherwise inside it; beside a point; never beyond the image."""
    text_length = len(escape_control_characters(annotation.label))
    width, height = (text_length * CHARACTER_WIDTH + 0.6) * unit, 1.4 * unit
    left, top = annotation.numbers[:2]
    if annotation.kind == "box" and top >= height:
        top -= height
    elif annotation.kind == "point":
        left += unit
    left, top = max(0.0, min(left, size[0] - width)), max(0.0, min(top, size[1] - height))
    return {
        "x": round(left, 2),
        "y": round(top, 2),
        "width": round(width, 2),
        "height": round(height, 2),
        "label": annotation.label,
    }


def place_event(annotation: Annotation, length_s: float) -> Mapping[str, Any]:
    """A span of the time line. Its label stands inside it or on the side with more room, and is cut to fit."""
    start, end = (round(TIMELINE_LENGTH * max(0.0, second) / length_s, 1) for second in annotation.numbers)
    width = max(end - start, 4.0)
    room = {"inside": width - 16, "after": TIMELINE_LENGTH - start - width - 8, "before": start - 8}
    text_width = len(annotation.label) * TIMELINE_CHARACTER_WIDTH
    side = "inside" if text_width <= room["inside"] else max(room, key=lambda name: room[name])
    max_length = int(room[side] / TIMELINE_CHARACTER_WIDTH)
    label = annotation.label
    if len(label) > max_length:
        label = f"{label[: max(max_length - 3, 0)]}..."
    label_x = {"inside": start + 8, "after": start + width + 8, "before": start - 8}[side]
    return {
        "x": start,
        "width": width,
        "label_x": label_x,
        "side": side,
        "label": label,
        "full_label": annotation.label,
    }


def count_values(answer: Any) -> int:
    """How many values there are to read; a list of numbers counts as one."""
    if isinstance(answer, Mapping):
        return sum(count_values(value) for value in answer.values())
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        if any(isinstance(element, (str, Mapping)) for element in answer):
            return sum(count_values(element) for element in answer)
        return 1
    return answer is not None
