"""Counts -> the bars of a chart, and marks -> what is drawn over a picture. Numbers only; the template draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.plan.format import count_by_bin
from pipeline.inspect.report.gather import LATENCY_BINS_PER_DECADE
from pipeline.inspect.report.marks import Annotation
from pipeline.inspect.report.page import escape_control_characters
from pipeline.inspect.report.pictures import MediaPreview, PreviewImage
from pipeline.types import Size

BAR_WIDTH, BIN_COUNT, COLOUR_COUNT = 150, 8, 8
MAX_TICKS, TICK_AREA_SHARE = 7, 0.95
CHARACTER_WIDTH = 0.56  # of a font's size: about how wide one is
TIMELINE_CHARACTER_WIDTH = 9.0  # thousandths of a time line


@dataclass(frozen=True, slots=True)
class ChartBar:
    label: str
    width: float
    said: str


def build_bars(counts: Mapping[str, float], value_format: str = "{:,.0f}") -> list[ChartBar]:
    most = max(counts.values(), default=0) or 1
    return [
        ChartBar(label, round(BAR_WIDTH * count / most, 1), value_format.format(count))
        for label, count in counts.items()
    ]


def build_histogram(counts: Counter[int], unit: str = "") -> list[ChartBar]:
    """Equal steps between the least and the most."""
    named = {}
    for first, last, count in count_by_bin(counts, BIN_COUNT) if counts else ():
        named[f"{first:,}{unit}" if first == last else f"{first:,} to {last:,}{unit}"] = float(count)
    return build_bars(named)


def build_latency_histogram(counts: Counter[int]) -> list[ChartBar]:
    """Of latencies by magnitude: equal steps of the logarithm.

    >>> [(bar.label, bar.said) for bar in durations(Counter({40: 3, 46: 1, 60: 1}))]
    [('0.1 to 0.141 s', '3'), ('0.141 to 0.2 s', '0'), ('0.2 to 0.282 s', '1'), ('0.282 to 0.398 s', '0'), \
('0.398 to 0.562 s', '0'), ('0.562 to 0.794 s', '0'), ('0.794 to 1.12 s', '1')]
    """
    if not counts:
        return []
    low, high = min(counts), max(counts)
    step = math.ceil((high - low + 1) / BIN_COUNT)
    bins = [sum(counts[at] for at in range(first, first + step)) for first in range(low, high + 1, step)]
    edges = [f"{10 ** ((low + at * step) / LATENCY_BINS_PER_DECADE) / 1000:.3g}" for at in range(len(bins) + 1)]
    return build_bars({f"{edges[at]} to {edges[at + 1]} s": float(count) for at, count in enumerate(bins)})


class Palette(dict[str, int]):
    """A colour for each label, the same on every picture; the first ones differ."""

    def __missing__(self, label: str) -> int:
        self[label] = len(self) % COLOUR_COUNT
        return self[label]


@dataclass
class AnnotatedMedia:
    """A picture with what is drawn over it, in its own pixels; a video with events on a line of 1000."""

    kind: str
    name: str
    size: Size
    stills: tuple[PreviewImage, ...]
    missing: str
    unit: float  # the size of letters
    boxes: list[Mapping[str, Any]] = field(default_factory=list)
    points: list[Mapping[str, Any]] = field(default_factory=list)
    labels: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    ticks: list[Mapping[str, Any]] = field(default_factory=list)


def annotate_media(
    preview: MediaPreview, annotations: Sequence[Annotation], palette: Palette, *, wide: bool = False
) -> AnnotatedMedia:
    """`wide`: it has more room, so letters may be smaller in its pixels."""
    unit = round(max(preview.size) / (56 if wide else 34), 2)
    out = AnnotatedMedia(preview.kind, preview.name, preview.size, preview.stills, preview.missing, unit)
    for mark in annotations:
        colour = {"colour": palette[mark.label]} if mark.kind != "event" else {}
        if mark.kind == "box":
            left, top, right, bottom = mark.numbers
            out.boxes.append({"x": left, "y": top, "width": right - left, "height": bottom - top, **colour})
        elif mark.kind == "point":
            out.points.append({"x": mark.numbers[0], "y": mark.numbers[1], **colour})
        if mark.kind != "event" and mark.label:
            out.labels.append({**place_label(mark, preview.size, unit), **colour})
    events = [mark for mark in annotations if mark.kind == "event"]
    if events:
        length = max(preview.duration_s, *(mark.numbers[1] for mark in events), 1e-3)
        out.events = [{**place_event(mark, length), "colour": at % COLOUR_COUNT} for at, mark in enumerate(events)]
        out.ticks = [
            {"x": round(1000 * second / length, 1), "label": f"{second:g} s"} for second in choose_ticks(length)
        ]
    return out


def choose_ticks(length: float) -> list[float]:
    """Round seconds along a line, none so near its end that its label would be cut.

    >>> ticks(4.88), ticks(130.0)
    ([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0])
    """
    ten = 10.0 ** math.floor(math.log10(length))
    step = next(ten * each for each in (0.2, 0.5, 1.0, 2.0) if length / (ten * each) <= MAX_TICKS)
    return [round(at * step, 6) for at in range(int(TICK_AREA_SHARE * length / step) + 1)]


def place_label(annotation: Annotation, size: Size, unit: float) -> Mapping[str, Any]:
    """Above a box where there is room, else inside; beside a point; never beyond the picture."""
    width, height = (len(escape_control_characters(annotation.label)) * CHARACTER_WIDTH + 0.6) * unit, 1.4 * unit
    left, top = annotation.numbers[:2]
    top = top - height if annotation.kind == "box" and top >= height else top
    left = left + unit if annotation.kind == "point" else left
    left, top = max(0.0, min(left, size[0] - width)), max(0.0, min(top, size[1] - height))
    numbers = {"x": left, "y": top, "width": width, "height": height}
    return {**{name: round(each, 2) for name, each in numbers.items()}, "label": annotation.label}


def place_event(annotation: Annotation, length: float) -> Mapping[str, Any]:
    """A stretch of the line; its words inside it or on the side that has more room, cut to what there is."""
    start, end = (round(1000 * max(0.0, second) / length, 1) for second in annotation.numbers)
    width = max(end - start, 4.0)
    rooms = {"inside": width - 16, "after": 1000 - start - width - 8, "before": start - 8}
    wanted = len(annotation.label) * TIMELINE_CHARACTER_WIDTH
    side = "inside" if wanted <= rooms["inside"] else max(rooms, key=lambda each: rooms[each])
    letters = int(rooms[side] / TIMELINE_CHARACTER_WIDTH)
    label = annotation.label if len(annotation.label) <= letters else f"{annotation.label[: max(letters - 3, 0)]}..."
    at = {"inside": start + 8, "after": start + width + 8, "before": start - 8}[side]
    return {"x": start, "width": width, "at": at, "side": side, "label": label, "whole": annotation.label}


def count_values(answer: Any) -> int:
    """How many things there are to read; a list of numbers is one."""
    if isinstance(answer, Mapping):
        return sum(count_values(part) for part in answer.values())
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return (
            sum(count_values(part) for part in answer)
            if any(isinstance(part, (str, Mapping)) for part in answer)
            else 1
        )
    return answer is not None
