"""Intervals cover the true value as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.inspect.score.intervals import estimate_ratios

pytestmark = pytest.mark.process


def test_intervals_cover_at_their_nominal_rate():
    """A share of right rows, and an F1 of boxes that come one to five in a row."""
    rng, covered, simulations = np.random.default_rng(1), np.zeros(2), 200
    chance = rng.beta(4, 1, size=200_000)  # how easy the boxes of a row are
    true_f1 = float(np.mean(chance))  # answered are as many boxes as there are
    for _ in range(simulations):
        boxes, easy = rng.integers(1, 6, 120), rng.choice(chance, 120)
        right = (rng.random(120) < 0.93).astype(float)
        sums = np.column_stack([right, 2 * rng.binomial(boxes, easy)])
        share, f1 = estimate_ratios(sums, np.column_stack([np.ones(120), 2.0 * boxes]), [True, True])
        covered += [share.low <= 0.93 <= share.high, f1.low <= true_f1 <= f1.high]
    assert np.all(covered / simulations > 0.905)
    assert np.all(covered / simulations < 0.99)


def test_a_measure_without_mistakes_is_not_certain():
    sums = np.full((50, 2), [4.0, 0.0])
    perfect, error = estimate_ratios(sums, np.full((50, 2), 4.0), [True, False])
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.9 < perfect.low < 0.95
    assert error == (0.0, 0.0, 0.0)
