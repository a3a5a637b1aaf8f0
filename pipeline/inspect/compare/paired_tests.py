"""Tests whether one question is answered better than another, on the same rows.

Rows differ in difficulty far more than prompts do in quality. So rows are compared in pairs: of values that are right
or wrong, only those count that one question got right and the other did not (McNemar's exact test); other measures are
resampled for both questions with the same rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.inspect.progress_bar import show_progress
from pipeline.inspect.score.box_matching import AveragePrecision, BoxRanking
from pipeline.inspect.score.intervals import RESAMPLINGS, Estimate, resample_rows
from pipeline.inspect.score.row_marks import RIGHT
from pipeline.inspect.score.scored_rows import ScoredRows

Array = np.ndarray[Any, Any]
PRECISION_RESAMPLINGS = 200
MAX_EXACT_PAIRS = 1000


class MeasureDifference(NamedTuple):
    first: float
    second: float
    difference: Estimate  # second less first
    p_value: float  # the chance of such a difference if both were equally good


def compare_measures(
    first: ScoredRows, second: ScoredRows, ids: Sequence[str]
) -> dict[str, dict[str, MeasureDifference]]:
    """By path and measure, where both have it."""
    names = [name for name in list_names(first, ids) if name in set(list_names(second, ids))]
    one, other = (read_shares(scored, ids, names) for scored in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.array([divide(other, weights) - divide(one, weights) for weights in resample_rows(len(ids))])
    whole = np.ones(len(ids))
    values, other_values = divide(one, whole), divide(other, whole)
    found: dict[str, dict[str, MeasureDifference]] = defaultdict(dict)
    for number, (path, measure) in enumerate(names):
        difference = build_difference(float(values[number]), float(other_values[number]), drawn[:, number])
        if measure == RIGHT and is_right_or_wrong(one[:, number]):
            gained = int(np.sum(other[:, number, 0] > one[:, number, 0]))
            lost = int(np.sum(other[:, number, 0] < one[:, number, 0]))
            difference = difference._replace(p_value=compute_mcnemar_p_value(gained, lost))
        found[path][measure] = difference
    for path in first.rankings.keys() & second.rankings.keys():
        found[path] |= compare_precision(first, second, ids, path)
    return dict(found)


def list_names(scored: ScoredRows, ids: Sequence[str]) -> list[tuple[str, str]]:
    """The measures that count something."""
    shares = ((path, name, of) for row_id in ids for path, found in scored.marks[row_id].sums.items()
              for name, (_, of) in found.items())  # fmt: skip
    return list(dict.fromkeys((path, name) for path, name, of in shares if of))


def read_shares(scored: ScoredRows, ids: Sequence[str], names: Sequence[tuple[str, str]]) -> Array:
    """By row and measure: the sum, and what it is a share of."""
    rows = [scored.marks[row_id].sums for row_id in ids]
    return np.array([[row.get(path, {}).get(measure, (0.0, 0.0)) for path, measure in names] for row in rows])


def divide(shares: Array, weights: Array) -> Array:
    sums = np.tensordot(weights, shares, axes=1)
    ratios: Array = sums[:, 0] / sums[:, 1]
    return ratios


def is_right_or_wrong(shares: Array) -> bool:
    return bool(np.all((shares[:, 1] == 1) & ((shares[:, 0] == 0) | (shares[:, 0] == 1))))


def build_difference(first: float, second: float, drawn: Array) -> MeasureDifference:
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5])
    side = min(np.mean(known <= 0), np.mean(known >= 0))
    p_value = min(1.0, max(2 * float(side), 1 / RESAMPLINGS))
    return MeasureDifference(first, second, Estimate(second - first, float(low), float(high)), p_value)


def compute_mcnemar_p_value(gained: int, lost: int) -> float:
    """
    >>> compute_mcnemar_p_value(8, 1), compute_mcnemar_p_value(0, 0)
    (0.0390625, 1.0)
    """
    count, fewer = gained + lost, min(gained, lost)
    if count > MAX_EXACT_PAIRS:
        return math.erfc(max(0.0, abs(gained - lost) - 1) / math.sqrt(2 * count))
    outcomes: int = sum(math.comb(count, each) for each in range(fewer + 1))
    return min(1.0, 2 * outcomes / (1 << count))


def compare_precision(
    first: ScoredRows, second: ScoredRows, ids: Sequence[str], path: str
) -> dict[str, MeasureDifference]:
    def compute(scored: ScoredRows, weights: Array) -> AveragePrecision:
        positions = {row_id: number for number, row_id in enumerate(scored.marks)}
        row_weights = np.zeros(len(scored.marks))
        row_weights[[positions[row_id] for row_id in ids]] = weights
        ranking: BoxRanking = scored.rankings[path]
        return ranking.compute(row_weights)

    def subtract(weights: Array) -> list[float]:
        pairs = zip(compute(first, weights), compute(second, weights), strict=True)
        return [math.nan if one is None or other is None else other - one for one, other in pairs]

    whole = np.ones(len(ids))
    resamplings = show_progress(resample_rows(len(ids), PRECISION_RESAMPLINGS), "intervals", PRECISION_RESAMPLINGS)
    drawn = np.array([subtract(weights) for weights in resamplings])
    return {
        name: build_difference(one, other, drawn[:, number])
        for number, (name, one, other) in enumerate(
            zip(("AP50", "AP50:95", "AR"), compute(first, whole), compute(second, whole), strict=True)
        )
        if one is not None and other is not None
    }
