"""The accuracy of the whole pipeline on unseen scenes, and the mistakes that it reveals.

Random weights have no wrong answers. These bounds are between the accuracy of the trained models and what remains of it
when boxes are not mapped back, frames are shuffled, or positions are off by one.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from pipeline.builtin.evaluate import evaluate_task, read_answers_and_truths, run_task
from pipeline.media.decode import ClipDecoder
from pipeline.model.engines.torch import step_runner
from pipeline.model.families import qwen
from pipeline.output.answer import json_answer

pytestmark = pytest.mark.process

BOUNDS = {
    "caption": {"valid": 0.99, "all named": 0.93},
    "classify": {"valid": 0.99, "right": 0.96},
    "detect": {"valid": 0.99, "IoU": 0.9, "label": 0.95},
    "video": {"valid": 0.99, "kind": 0.95, "time": 0.85},
    "invoice": {"valid": 0.99, "number": 0.9, "issued": 0.9, "total": 0.9},
}
SCENES, FEW_SCENES = 32, 16


def find_misses(figures, bounds):
    """The names of the bounds that are not reached."""
    return {name for name, bound in bounds.items() if figures[name] < bound}


@pytest.mark.parametrize("task", BOUNDS)
def test_unseen_scenes_are_answered_correctly(task, tmp_path):
    assert find_misses(evaluate_task(tmp_path, task, SCENES), BOUNDS[task]) == set()


def test_choices_are_right_at_least_as_often_as_captions(tmp_path):
    right = evaluate_task(tmp_path, "classify", SCENES)["right"]
    manifest = tmp_path / "classify" / "manifest.parquet"
    run_task("caption", tmp_path, ["answer.guided=false", f"input.manifest={manifest}"], runner="local")
    pairs = read_answers_and_truths(manifest, tmp_path / "answers" / "caption")
    assert right >= fmean((caption or {}).get("tags", [None])[:1] == [truth] for caption, truth in pairs)


QWEN3_BOUNDS = {"detect": {"IoU": 0.8, "label": 0.95}, "video": {"kind": 0.95, "time": 0.75}}
HYBRID = "model.weights=builtin:tiny-qwen3_5"


@pytest.mark.parametrize("task", QWEN3_BOUNDS)
@pytest.mark.parametrize("weights", ["model.weights=builtin:tiny-qwen3", HYBRID], ids=["qwen3", "qwen3_5"])
def test_families_with_other_conventions_are_as_accurate(task, weights, tmp_path):
    assert find_misses(evaluate_task(tmp_path, task, FEW_SCENES, changes=[weights]), QWEN3_BOUNDS[task]) == set()


def test_states_that_are_forgotten_at_each_token_lower_the_accuracy(tmp_path, monkeypatch):
    find_rows = step_runner.find_state_rows
    monkeypatch.setattr(
        step_runner, "find_state_rows", lambda slot, side, *, is_new: find_rows(slot, side, is_new=True)
    )
    assert find_misses(evaluate_task(tmp_path, "detect", FEW_SCENES, changes=[HYBRID]), QWEN3_BOUNDS["detect"])


def test_boxes_that_are_not_mapped_back_lower_the_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(json_answer, "map_to_source", lambda value, schema, **_: (value, ()))
    assert "IoU" in find_misses(evaluate_task(tmp_path, "detect", FEW_SCENES), BOUNDS["detect"])


def test_shuffled_frames_lower_the_accuracy(tmp_path, monkeypatch):
    decode = ClipDecoder.decode

    def decode_shuffled(*arguments, **options):
        clips = decode(*arguments, **options)
        orders = [np.random.default_rng(0).permutation(len(clip.pixels)) for clip in clips]
        return [replace(clip, pixels=clip.pixels[order]) for clip, order in zip(clips, orders, strict=True)]

    monkeypatch.setattr(ClipDecoder, "decode", decode_shuffled)
    assert "kind" in find_misses(evaluate_task(tmp_path, "video", FEW_SCENES), BOUNDS["video"])


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_off_by_one_lower_the_accuracy(tmp_path, monkeypatch, axis):
    compute_grid_positions = qwen.compute_grid_positions

    def compute_shifted(grid):
        positions = compute_grid_positions(grid)
        positions[axis] += 1
        return positions

    monkeypatch.setattr(qwen, "compute_grid_positions", compute_shifted)
    assert "IoU" in find_misses(evaluate_task(tmp_path, "detect", FEW_SCENES), BOUNDS["detect"])
