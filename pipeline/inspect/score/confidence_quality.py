"""Tells whether confidences mean something: whether right values have more, and are right as often as they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 10  # of equally many values


class ConfidenceQuality(NamedTuple):
    values: int
    right: float  # the share of right values
    mean: float  # confidence
    auroc: float | None  # the chance that a right value has the higher confidence; None without right or wrong ones
    calibration_error: float  # mean distance between confidence and the share of right values, over bins


def measure_confidence(judged: Sequence[tuple[float, bool]]) -> ConfidenceQuality | None:
    """
    >>> measure_confidence([(0.9, True), (0.7, True), (0.4, False), (0.8, False)]).auroc
    0.75
    """
    if not judged:
        return None
    confidences, right = np.array([each[0] for each in judged]), np.array([each[1] for each in judged], dtype=bool)
    order = np.argsort(confidences, kind="mergesort")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [len(part) * abs(float(confidences[part].mean() - right[part].mean())) for part in bins]
    return ConfidenceQuality(
        len(judged),
        float(right.mean()),
        float(confidences.mean()),
        compute_auroc(confidences, right),
        sum(gaps) / len(judged),
    )


def compute_auroc(confidences: Array, right: Array) -> float | None:
    right_count, wrong_count = int(right.sum()), int((~right).sum())
    if not right_count or not wrong_count:
        return None
    _, places, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal confidences share a rank
    return float((ranks[right].sum() - right_count * (right_count + 1) / 2) / (right_count * wrong_count))
