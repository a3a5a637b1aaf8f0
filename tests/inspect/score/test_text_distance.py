"""Text distances and assignments against other implementations."""

from __future__ import annotations

import random

import numpy as np
import pytest
from anls_star import anls_score
from scipy.optimize import linear_sum_assignment

from pipeline.inspect.score.assignment import assign_best
from pipeline.inspect.score.text_distance import compute_anls


def test_anls_equals_that_of_its_authors():
    rng = random.Random(3)
    for _ in range(300):
        one, other = ("".join(rng.choices("abC ü\n", k=rng.randrange(0, 12))) for _ in range(2))
        other = one[: rng.randrange(0, 12)] + other[: rng.randrange(0, 6)]
        assert compute_anls(other, one) == pytest.approx(anls_score(one, other), abs=1e-12), (one, other)


def test_assignments_have_the_greatest_sum():
    rng = np.random.default_rng(5)
    for _ in range(200):
        weights = rng.integers(0, 6, size=rng.integers(1, 8, size=2)).astype(float) / 5
        pairs = assign_best(weights)
        rows, columns = linear_sum_assignment(weights, maximize=True)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == min(weights.shape)
        assert sum(weights[pair] for pair in pairs) == pytest.approx(weights[rows, columns].sum())
    assert assign_best(np.zeros((0, 3))) == []
