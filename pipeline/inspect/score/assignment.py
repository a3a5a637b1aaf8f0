"""Pairs the elements of two lists so that the sum of their weights is greatest."""

from __future__ import annotations

from typing import Any

import numpy as np

Weights = np.ndarray[Any, np.dtype[np.float64]]


def assign_best(weights: Weights) -> list[tuple[int, int]]:
    """(row, column) pairs, as many as the shorter side has (the Hungarian method: shortest augmenting paths).

    >>> assign_best(np.array([[0.9, 0.8], [0.8, 0.1]]))
    [(0, 1), (1, 0)]
    """
    if weights.shape[0] > weights.shape[1]:
        return sorted((row, column) for column, row in assign_best(weights.T))
    row_count, column_count = weights.shape
    row_prices, column_prices = np.zeros(row_count + 1), np.zeros(column_count + 1)
    row_of_column = np.zeros(column_count + 1, dtype=int)  # numbers start at 1; column 0 holds the row to be placed
    for row in range(1, row_count + 1):
        row_of_column[0] = row
        column, slack = 0, np.full(column_count + 1, np.inf)
        previous, used = np.zeros(column_count + 1, dtype=int), np.zeros(column_count + 1, dtype=bool)
        while row_of_column[column] or not column:
            used[column] = True
            current = row_of_column[column]
            reduced = np.append(np.inf, -weights[current - 1] - row_prices[current] - column_prices[1:])
            better = ~used & (reduced < slack)
            slack[better], previous[better] = reduced[better], column
            column = int(np.argmin(np.where(used, np.inf, slack)))
            step = slack[column]
            row_prices[row_of_column[used]] += step
            column_prices[used] -= step
            slack[~used] -= step
        while column:
            row_of_column[column] = row_of_column[previous[column]]
            column = previous[column]
    return sorted((int(row) - 1, column) for column, row in enumerate(row_of_column[1:]) if row)
