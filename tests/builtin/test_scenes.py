"""Scenes: the truth is what was drawn, and training never sees a scene of the evaluation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.builtin import scene_files
from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training import tokenizer
from pipeline.schema import schema_loader
from pipeline.schema.validate import validate_answer

TASKS = ("caption", "detect", "invoice", "video")


@pytest.mark.parametrize("task", TASKS)
def test_training_and_evaluation_share_no_scene(task):
    evaluated = {describe_drawing("evaluate", task, number) for number in range(500)}
    trained = {describe_drawing("train", task, number) for number in range(3000)}
    assert len(evaluated) == 500
    assert evaluated & trained == set()


def describe_drawing(split, task, number):
    """Everything that decides the look of a scene, except the paper."""
    scene = create_scene(split, task, number)
    return str((scene.size, scene.frame_count, scene.shapes, scene.characters))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_number_gives_the_same_scene(task):
    one, other = create_scene("evaluate", task, 7), create_scene("evaluate", task, 7)
    assert one.answer == other.answer
    assert one.draw_frame(0).tobytes() == other.draw_frame(0).tobytes()


def test_a_box_holds_every_pixel_of_its_shape_and_touches_it_on_all_sides():
    for number in range(50):
        scene = create_scene("evaluate", "detect", number)
        pixels = np.asarray(scene.draw_frame(0)).astype(int)
        for shape, box in zip(scene.shapes, scene.answer["boxes"], strict=True):
            painted = np.argwhere((pixels == shape.color).all(-1))
            left, top, right, bottom = box["bbox_2d"]
            rows, columns = painted[:, 0], painted[:, 1]
            inside = painted[(rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)]
            assert inside.min(0).tolist() == pytest.approx([top, left], abs=1)
            assert inside.max(0).tolist() == pytest.approx([bottom - 1, right - 1], abs=1)


def test_shapes_are_named_from_left_to_right():
    scene = next(
        candidate for number in range(50) if len((candidate := create_scene("evaluate", "caption", number)).shapes) == 3
    )
    lefts = [shape.boxes[0][0] for shape in scene.shapes]
    assert lefts == sorted(lefts)
    assert scene.answer["tags"] == [shape.name for shape in scene.shapes]


def test_nothing_changes_outside_the_events_of_a_clip():
    for number in range(20):
        scene = create_scene("evaluate", "video", number)
        spans = [(event["start"] * scene.fps, event["end"] * scene.fps) for event in scene.answer["events"]]
        frames = [np.asarray(scene.draw_frame(number)).astype(int) for number in range(scene.frame_count)]
        for index, (frame, following) in enumerate(itertools.pairwise(frames)):
            changed = bool(np.abs(frame - following).max())
            assert not changed or any(start - 1 < index < end + 1 for start, end in spans)


def test_the_amounts_of_an_invoice_add_up():
    for number in range(50):
        answer = create_scene("evaluate", "invoice", number).answer
        cents = sum(round(100 * float(line["amount"])) for line in answer["lines"])
        assert cents == round(100 * float(answer["total"]))


@pytest.mark.parametrize("task", TASKS)
def test_every_truth_fits_the_shipped_schema(task):
    schema = schema_loader.load_schema(tokenizer.TASK_SCHEMAS[task], base_folder=Path())
    for number in range(20):
        assert validate_answer(create_scene("evaluate", task, number).answer, schema)[0]


def test_a_written_video_has_every_frame_of_its_clip(tmp_path):
    manifest = scene_files.write_scene_files(tmp_path, "video", 2, first_scene=3)
    rows = pq.read_table(manifest).to_pylist()
    with av.open(str(tmp_path / rows[0]["media"])) as video:
        count = sum(1 for _ in video.decode(video=0))
    assert count == create_scene("evaluate", "video", 3).frame_count
    assert [json.loads(row["truth"]) for row in rows] == [
        create_scene("evaluate", "video", number).answer for number in (3, 4)
    ]
