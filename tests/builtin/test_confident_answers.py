"""Confidences tell right values from wrong ones: the built-in models on scenes that noise makes hard to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipeline.builtin import scene_files
from pipeline.builtin.evaluate import run_task
from pipeline.builtin.scores import compute_iou, compute_temporal_iou, normalize_value
from pipeline.inspect.score.confidence_quality import measure_confidence
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


@pytest.fixture
def judge_noisy_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[list[tuple[float, bool]]]]:
    """A function that answers scenes with noise and returns the judged values of each row."""
    decode, generator = ClipDecoder.decode, np.random.default_rng(0)

    def judge_scenes(
        task: str, noise: float, judge: Callable[..., Judged], count: int
    ) -> list[list[tuple[float, bool]]]:
        def decode_noisy(*arguments: Any, **options: Any) -> list[Any]:
            clips = []
            for clip in decode(*arguments, **options):
                noisy = clip.pixels + generator.normal(0, noise * generator.random(), clip.pixels.shape)
                clips.append(replace(clip, pixels=noisy.clip(0, 255).astype(np.uint8)))
            return clips

        monkeypatch.setattr(ClipDecoder, "decode", decode_noisy)
        scene_files.write_scene_files(tmp_path / task, task, count)
        run_task(task, tmp_path, ["limits.error_rate=1"], runner="local")
        rows = ds.dataset(tmp_path / "answers" / task / "data").to_table(["answer", "confidence", "truth"]).to_pylist()
        judged = [list(judge(row["answer"], row["confidence"], json.loads(row["truth"]))) for row in rows]
        wrong = [not is_right for row in judged for _, is_right in row]
        assert 0.1 <= sum(wrong) / len(wrong) <= 0.4
        return judged

    return judge_scenes


@pytest.mark.parametrize(
    ("task", "noise", "judge", "largest_error"),
    [("detect", 30, judge_boxes, 0.05), ("video", 30, judge_events, 0.1), ("invoice", 125, judge_fields, 0.05)],
    ids=["boxes", "events", "invoice fields"],
)
def test_right_values_have_higher_confidences_and_each_half_calibrates_the_other(
    judge_noisy_scenes, task, noise, judge, largest_error
):
    quality = measure_confidence(judge_noisy_scenes(task, noise, judge, 96))
    assert quality.auroc >= 0.85
    assert quality.calibrated_error <= largest_error
