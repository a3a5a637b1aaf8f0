"""The whole pipeline, held to the truth on unseen scenes; and what breaks it is seen.

A pipeline tested on random weights cannot be wrong. These bounds lie between what the trained models reach and what
is left of it when boxes are not mapped back, frames come in another order, or positions are off by one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import prepare
from pipeline.builtin.evaluate import evaluate_task
from pipeline.model.families import qwen
from pipeline.output.answer import build_row

LEAST = {
    "caption": {"valid": 0.99, "all named": 0.93},
    "detect": {"valid": 0.99, "IoU": 0.9, "label": 0.95},
    "video": {"valid": 0.99, "kind": 0.95, "time": 0.85},
    "invoice": {"valid": 0.99, "number": 0.9, "issued": 0.9, "total": 0.9},
}
SCENES, FEW = 32, 16


def misses(figures, least):
    """Which bounds are not reached."""
    return {name for name, bound in least.items() if figures[name] < bound}


@pytest.mark.parametrize("task", LEAST)
def test_unseen_scenes_are_answered_rightly(task, tmp_path):
    assert misses(evaluate_task(tmp_path, task, SCENES), LEAST[task]) == set()


@pytest.mark.parametrize(
    ("task", "least"), [("detect", {"IoU": 0.8, "label": 0.95}), ("video", {"kind": 0.95, "time": 0.75})]
)
def test_a_family_of_other_conventions_is_as_right(task, least, tmp_path):
    found = evaluate_task(tmp_path, task, FEW, changes=["model.weights=builtin:tiny-qwen3"])
    assert misses(found, least) == set()


def test_boxes_that_are_not_mapped_back_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(build_row, "to_source", lambda value, schema, **where: (value, ()))
    assert "IoU" in misses(evaluate_task(tmp_path, "detect", FEW), LEAST["detect"])


def test_frames_in_another_order_are_noticed(tmp_path, monkeypatch):
    look = prepare.load_clips

    def shuffled(*given, **how):
        clips = look(*given, **how)
        order = [np.random.default_rng(0).permutation(len(clip.pixels)) for clip in clips]
        return [replace(clip, pixels=clip.pixels[at]) for clip, at in zip(clips, order, strict=True)]

    monkeypatch.setattr(prepare, "look", shuffled)
    assert "kind" in misses(evaluate_task(tmp_path, "video", FEW), LEAST["video"])


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_that_are_off_by_one_are_noticed(tmp_path, monkeypatch, axis):
    places = qwen.compute_grid_positions

    def shifted(grid):
        found = places(grid)
        found[axis] += 1
        return found

    monkeypatch.setattr(qwen, "grid_positions", shifted)
    assert "IoU" in misses(evaluate_task(tmp_path, "detect", FEW), LEAST["detect"])
