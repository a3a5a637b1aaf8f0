"""Confidences are mapped to the share of right values, as scikit-learn's isotonic regression does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from pipeline.inspect.score.calibration import fit_isotonic
from pipeline.inspect.score.confidence_quality import measure_confidence
from pipeline.output.answer.confidence_maps import apply_map


@pytest.mark.parametrize("seed", range(20))
def test_the_map_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    confidences = rng.random(150).round(2)  # some are equal
    right = (rng.random(150) < confidences**2).astype(float)
    expected = IsotonicRegression(out_of_bounds="clip").fit(confidences, right)
    new = rng.random(50)
    assert apply_map(new, fit_isotonic(confidences, right)) == pytest.approx(expected.predict(new), abs=1e-9)


def test_calibration_lowers_the_error_of_confidences_that_are_too_high():
    rng = np.random.default_rng(1)
    quality = measure_confidence([[(c**0.2, bool(rng.random() < c)) for c in rng.random(3)] for _ in range(200)])
    assert quality.calibration_error > 0.25
    assert quality.calibrated_error < 0.1
    shares = [share for _, share in quality.calibration]
    assert shares == sorted(shares)


def test_values_of_one_row_do_not_calibrate_each_other():
    assert measure_confidence([[(0.5, True)] * 10, [(0.5, False)] * 10]).calibrated_error == 1.0


def test_few_values_have_no_calibrated_error():
    assert measure_confidence([[(0.5, True)] * 30, [(0.5, True)] * 9]).calibrated_error is None
