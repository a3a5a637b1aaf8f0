"""Confidences tell right values from wrong ones: the built-in models on scenes that noise makes hard to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipeline.builtin import scene_files
from pipeline.builtin.evaluate import run_task
from pipeline.builtin.scores import compute_iou, compute_temporal_iou, normalize_value
from pipeline.media.decode import ClipDecoder

pytestmark = pytest.mark.process

Judged = Iterator[tuple[float, bool]]  # a confidence, and whether the value is right


def judge_boxes(answer: Mapping[str, Any], confidence: Mapping[str, Any], truth: Mapping[str, Any]) -> Judged:
    for box, sure in zip(answer["boxes"], confidence["boxes"], strict=True):
        places = [true["bbox_2d"] for true in truth["boxes"] if true["label"] == box["label"]]
        yield sure["score"], any(compute_iou(box["bbox_2d"], place) > 0.75 for place in places)


def judge_events(answer: Mapping[str, Any], confidence: Mapping[str, Any], truth: Mapping[str, Any]) -> Judged:
    for event, sure in zip(answer["events"], confidence["events"], strict=True):
        times = [(true["start"], true["end"]) for true in truth["events"] if true["what"] == event["what"]]
        yield sure["score"], any(compute_temporal_iou((event["start"], event["end"]), time) > 0.75 for time in times)


def judge_fields(answer: Mapping[str, Any], confidence: Mapping[str, Any], truth: Mapping[str, Any]) -> Judged:
    for name in ("number", "issued", "currency", "total"):
        yield confidence[name], normalize_value(answer[name]) == normalize_value(truth[name])


def compute_auroc(judged: list[tuple[float, bool]]) -> float:
    """The probability that a right value has a higher confidence than a wrong one."""
    right, wrong = (np.array([sure for sure, is_right in judged if is_right is wanted]) for wanted in (True, False))
    assert 0.1 <= len(wrong) / len(judged) <= 0.4
    return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))


@pytest.mark.parametrize(
    ("task", "noise", "judge"),
    [("detect", 30, judge_boxes), ("video", 30, judge_events), ("invoice", 110, judge_fields)],
    ids=["boxes", "events", "invoice fields"],
)
def test_right_values_have_higher_confidences_than_wrong_ones(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, task: str, noise: float, judge: Callable[..., Judged]
) -> None:
    decode, generator = ClipDecoder.decode, np.random.default_rng(0)

    def decode_noisy(*arguments: Any, **options: Any) -> list[Any]:
        clips = []
        for clip in decode(*arguments, **options):
            amount = noise * generator.random()
            noisy = clip.pixels + generator.normal(0, amount, clip.pixels.shape)
            clips.append(replace(clip, pixels=noisy.clip(0, 255).astype(np.uint8)))
        return clips

    monkeypatch.setattr(ClipDecoder, "decode", decode_noisy)
    scene_files.write_scene_files(tmp_path / task, task, 48)
    run_task(task, tmp_path, ["limits.error_rate=1"], runner="local")
    rows = ds.dataset(tmp_path / "answers" / task / "data").to_table(["answer", "confidence", "truth"]).to_pylist()
    judged = [pair for row in rows for pair in judge(row["answer"], row["confidence"], json.loads(row["truth"]))]
    assert compute_auroc(judged) >= 0.85
