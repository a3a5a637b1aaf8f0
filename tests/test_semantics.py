"""The same job means the same to a model as before, or SEMANTICS_VERSION says that it does not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.semantics import GOLDEN_FOLDER, collect_semantics, read_golden, to_plain

PIXEL_TOLERANCE = 2  # of 255: processors round differently
ADVICE = "raise SEMANTICS_VERSION in pipeline/job/fingerprint.py, then run python -m tests.semantics"


@pytest.fixture(scope="module")
def semantics():
    return collect_semantics()


def test_prompts_positions_answers_and_defaults_are_those_of_their_version(semantics):
    found, golden = to_plain(semantics[0]), read_golden()[0]
    changed = {name: (golden[name], found.get(name)) for name in golden if found.get(name) != golden[name]}
    assert changed == {}, ADVICE
    assert found.keys() - golden.keys() == set(), "not recorded yet: run python -m tests.semantics"


def test_pixels_are_those_of_their_version(semantics):
    found, golden = semantics[1], read_golden()[1]
    assert found.keys() == golden.keys(), f"{GOLDEN_FOLDER}: {ADVICE}, if pictures are missing or not recorded"
    for name, pixels in golden.items():
        assert found[name].shape == pixels.shape, f"{name}: {ADVICE}"
        assert np.abs(found[name].astype(int) - pixels).max() <= PIXEL_TOLERANCE, f"{name}: {ADVICE}"
