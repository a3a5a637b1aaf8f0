"""Tells whether confidences mean something: whether right values have more, and are right as often as they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.inspect.score.calibration import CalibrationMap, calibrate_by_other_rows, fit_isotonic

Array = np.ndarray[Any, Any]
BINS = 10  # of equally many values


class ConfidenceBin(NamedTuple):
    confidence: float  # the mean
    right: float  # the share of right values
    values: int


class ConfidenceQuality(NamedTuple):
    values: int
    right: float  # the share of right values
    mean: float  # confidence
    auroc: float | None  # the chance that a right value has the higher confidence; None without right or wrong ones
    calibration_error: float  # mean distance between confidence and the share of right values, over bins
    calibrated_error: (
        float | None
    )  # the same after each half of the rows is calibrated by the other; None for few values
    calibration: CalibrationMap  # fitted on all
    bins: list[ConfidenceBin]  # before calibration


def measure_confidence(rows: Sequence[Sequence[tuple[float, bool]]]) -> ConfidenceQuality | None:
    """`rows` are the confidences of each row's values, and whether the values are right.

    >>> measure_confidence([[(0.9, True), (0.7, True)], [(0.4, False), (0.8, False)]]).auroc
    0.75
    """
    judged = [each for row in rows for each in row]
    if not judged:
        return None
    confidences, right = np.array([each[0] for each in judged]), np.array([each[1] for each in judged], dtype=bool)
    in_half = np.repeat(np.arange(len(rows)) % 2 == 0, [len(row) for row in rows])  # values of one row are alike
    is_enough = min(np.count_nonzero(in_half), np.count_nonzero(~in_half)) >= BINS
    return ConfidenceQuality(
        values=len(judged),
        right=float(right.mean()),
        mean=float(confidences.mean()),
        auroc=compute_auroc(confidences, right),
        calibration_error=compute_calibration_error(confidences, right),
        calibrated_error=compute_calibration_error(calibrate_by_other_rows(confidences, right, in_half), right)
        if is_enough
        else None,
        calibration=fit_isotonic(confidences, right),
        bins=list(bin_confidences(confidences, right)),
    )


def compute_calibration_error(confidences: Array, right: Array) -> float:
    bins = bin_confidences(confidences, right)
    return sum(each.values * abs(each.confidence - each.right) for each in bins) / len(right)


def bin_confidences(confidences: Array, right: Array) -> Iterator[ConfidenceBin]:
    order = np.argsort(confidences, kind="mergesort")
    for part in np.array_split(order, BINS):
        if len(part):
            yield ConfidenceBin(float(confidences[part].mean()), float(right[part].mean()), len(part))


def compute_auroc(confidences: Array, right: Array) -> float | None:
    right_count, wrong_count = int(right.sum()), int((~right).sum())
    if not right_count or not wrong_count:
        return None
    _, places, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal confidences share a rank
    return float((ranks[right].sum() - right_count * (right_count + 1) / 2) / (right_count * wrong_count))
