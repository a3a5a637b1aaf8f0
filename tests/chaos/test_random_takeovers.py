"""Runs that are taken over at random moments; the whole of it is `python -m tests.chaos.takeover`."""

from __future__ import annotations

import random

import pytest

from tests.chaos.takeover import run_trials


@pytest.mark.slow
def test_takeovers_at_random_moments_repeat_no_row(tmp_path):
    seed = random.randrange(10**6)
    trials = run_trials(tmp_path, moments=9, seed=seed)
    assert [trial for trial in trials if trial.fault == "late" and trial.repeated_rows], f"seed {seed}"
