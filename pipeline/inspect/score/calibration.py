"""Fits what confidences should have said.

Isotonic regression maps a confidence to the share of right values among values of that confidence. The map only rises,
so the order of values stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.output.answer.confidence_maps import apply_map

Array = np.ndarray[Any, Any]
CalibrationMap = list[tuple[float, float]]  # a confidence and its share of right values; straight lines between


def calibrate_by_other_rows(confidences: Array, right: Array, in_half: Array) -> Array:
    """Calibrate each half of the values by the other, which shows what calibration does to values that it never saw."""
    calibrated = np.empty_like(confidences)
    for half in (in_half, ~in_half):
        calibrated[half] = apply_map(confidences[half], fit_isotonic(confidences[~half], right[~half]))
    return calibrated


def fit_isotonic(confidences: Array, right: Array) -> CalibrationMap:
    """The rising map with the least squared error: neighbours that fall are pooled until none does.

    >>> fit_isotonic(np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]))
    [(0.1, 0.0), (0.2, 0.5), (0.3, 0.5), (0.9, 1.0)]
    """
    pools: list[tuple[float, float, float, float]] = []  # first and last confidence, right values, values
    levels, places = np.unique(confidences, return_inverse=True)
    totals, counts = np.bincount(places, right), np.bincount(places)
    for level, total, count in zip(levels.tolist(), totals.tolist(), counts.tolist(), strict=True):
        pool = (level, level, total, count)
        while pools and pools[-1][2] / pools[-1][3] >= pool[2] / pool[3]:
            first, _, earlier_total, earlier_count = pools.pop()
            pool = (first, level, earlier_total + pool[2], earlier_count + pool[3])
        pools.append(pool)
    return [(end, total / count) for first, last, total, count in pools for end in dict.fromkeys((first, last))]
