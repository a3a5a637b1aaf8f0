"""Intervals of 95 % for measures that are a sum over rows divided by another sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
RESAMPLINGS = 1000
Z = 1.959964  # of a normal distribution, both sides, 5 % outside


class Estimate(NamedTuple):
    value: float
    low: float | None  # None where no interval is computed
    high: float | None


def resample_rows(row_count: int, times: int = RESAMPLINGS, seed: int = 0) -> Iterator[Array]:
    """How often each row is drawn, when as many rows as there are are drawn with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(rng.integers(0, row_count, row_count), minlength=row_count).astype(float)


def estimate_ratios(sums: Array, counts: Array, are_shares: Sequence[bool], seed: int = 0) -> list[Estimate | None]:
    """One estimate for each column of two tables with a line for each row. None where a measure counts nothing.

    Shares of right rows get Wilson's interval, and so do other measures between 0 and 1 (`are_shares`) without a
    mistake, where resampling would find no doubt at all. The rest gets the percentiles of the resampled measure.
    """
    if not len(sums):
        return []
    whole = counts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [(weights @ sums) / (weights @ counts) for weights in resample_rows(len(sums), seed=seed)]
        values = sums.sum(axis=0) / whole
    lows, highs = np.nanpercentile(np.where(whole > 0, drawn, 0), [2.5, 97.5], axis=0)
    return [
        None
        if not whole[n]
        else _build_estimate(
            sums[:, n], counts[:, n], Estimate(*(float(x[n]) for x in (values, lows, highs))), are_shares[n]
        )
        for n in range(sums.shape[1])
    ]


def _build_estimate(sums: Array, counts: Array, resampled: Estimate, is_share: bool) -> Estimate:
    is_right_or_wrong = bool(np.all((counts == 0) | ((counts == 1) & ((sums == 0) | (sums == 1)))))
    if is_share and (is_right_or_wrong or (resampled.low == resampled.high and resampled.value in (0, 1))):
        return Estimate(resampled.value, *compute_wilson_interval(resampled.value, int(np.count_nonzero(counts))))
    return resampled


def compute_wilson_interval(share: float, count: int) -> tuple[float, float]:
    """
    >>> [round(end, 3) for end in compute_wilson_interval(1.0, 100)]
    [0.963, 1.0]
    """
    share = min(max(share, 0.0), 1.0)  # rounding aside, it is so already
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return min(share, middle - half), max(share, middle + half)
