"""Lays out reliability diagrams: how many values are right among those of about the same confidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.inspect.score import FieldScore

SIDE = 200  # of the square from 0 to 1


@dataclass(frozen=True)
class ReliabilityDiagram:
    path: str
    summary: str
    bins: Sequence[tuple[float, float, str]]  # where a bin of values is, and what it says
    calibrated_line: str  # the points of a polyline


def build_reliability_diagrams(fields: Mapping[str, FieldScore]) -> Iterator[ReliabilityDiagram]:
    """Of the fields that have enough values for a calibration that holds."""
    for path, field in fields.items():
        quality = field.confidence
        if quality is not None and quality.calibrated_error is not None:
            bins = [(*place(each.confidence, each.right), describe_bin(*each)) for each in quality.bins]
            points = [place(*point) for point in quality.calibration]
            line = " ".join(f"{x},{y}" for x, y in points)
            errors = f"calibration error {quality.calibration_error:.3f}, calibrated {quality.calibrated_error:.3f}"
            yield ReliabilityDiagram(path, f"{quality.values:,} values, {errors}", bins, line)


def place(confidence: float, right: float) -> tuple[float, float]:
    """
    >>> place(0.25, 1.0)
    (50.0, 0.0)
    """
    return round(SIDE * confidence, 1), round(SIDE * (1 - right), 1)


def describe_bin(confidence: float, right: float, values: int) -> str:
    return f"{values:,} values of about {confidence:.2f}, {right:.0%} right"
