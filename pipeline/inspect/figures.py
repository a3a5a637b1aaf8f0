"""Even samples, bins, sums and rounding, for the plan and the report."""

from __future__ import annotations

import math
from collections import Counter


def pick_evenly(count: int, wanted_count: int) -> list[int]:
    """Indices below `count`, evenly spread.

    >>> pick_evenly(10, 3), pick_evenly(2, 3)
    ([1, 5, 8], [0, 1])
    """
    if wanted_count >= count:
        return [*range(count)]
    return [int((index + 0.5) * count / wanted_count) for index in range(wanted_count)]


def count_by_bin(counts: Counter[int], bin_count: int) -> list[tuple[int, int, int]]:
    """Bins of equal width from the least to the greatest value, as (first, last, count).

    >>> count_by_bin(Counter({1: 2, 4: 1, 5: 1}), 2)
    [(1, 3, 2), (4, 5, 2)]
    """
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / bin_count)
    starts = range(low, high + 1, width)
    return [
        (first, min(first + width - 1, high), sum(counts[n] for n in range(first, first + width))) for first in starts
    ]


def sum_weighted(counts: Counter[int]) -> int:
    return sum(value * count for value, count in counts.items())


def format_amount(value: float) -> str:
    """
    >>> format_amount(0.00012), format_amount(0.123), format_amount(12.34), format_amount(1234.5)
    ('<0.01', '0.12', '12.3', '1,234')
    """
    if value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
