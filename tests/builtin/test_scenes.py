"""Scenes: the truth about a drawing is what was drawn, and training never sees what evaluation asks."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.builtin import scene_files
from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training import vocabulary
from pipeline.schema import schema_loader

TASKS = ("caption", "detect", "invoice", "video")


@pytest.mark.parametrize("task", TASKS)
def test_no_scene_of_the_evaluation_is_one_of_training(task):
    asked = {drawing("evaluate", task, number) for number in range(500)}
    learned = {drawing("train", task, number) for number in range(3000)}
    assert len(asked) == 500
    assert asked & learned == set()


def drawing(split, task, number):
    """All that decides how it looks, but for the paper."""
    drawn = create_scene(split, task, number)
    return str((drawn.size, drawn.frame_count, drawn.shapes, drawn.characters))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_number_draws_the_same_scene(task):
    one, other = create_scene("evaluate", task, 7), create_scene("evaluate", task, 7)
    assert one.answer == other.answer
    assert one.draw_frame(0).tobytes() == other.draw_frame(0).tobytes()


def test_a_box_holds_every_pixel_of_its_shape_and_touches_it_on_all_sides():
    for number in range(50):
        drawn = create_scene("evaluate", "detect", number)
        pixels = np.asarray(drawn.draw_frame(0)).astype(int)
        for thing, box in zip(drawn.shapes, drawn.answer["boxes"], strict=True):
            at = np.argwhere((pixels == thing.color).all(-1))
            left, top, right, bottom = box["bbox_2d"]
            inside = at[(at[:, 0] >= top) & (at[:, 0] < bottom) & (at[:, 1] >= left) & (at[:, 1] < right)]
            assert inside.min(0).tolist() == pytest.approx([top, left], abs=1)
            assert inside.max(0).tolist() == pytest.approx([bottom - 1, right - 1], abs=1)


def test_things_are_named_from_left_to_right():
    drawn = next(
        found for number in range(50) if len((found := create_scene("evaluate", "caption", number)).shapes) == 3
    )
    lefts = [thing.boxes[0][0] for thing in drawn.shapes]
    assert lefts == sorted(lefts)
    assert drawn.answer["tags"] == [thing.name for thing in drawn.shapes]


def test_nothing_changes_outside_the_events_of_a_clip():
    for number in range(20):
        drawn = create_scene("evaluate", "video", number)
        spans = [(event["start"] * drawn.fps, event["end"] * drawn.fps) for event in drawn.answer["events"]]
        frames = [np.asarray(drawn.draw_frame(at)).astype(int) for at in range(drawn.frame_count)]
        for at in range(drawn.frame_count - 1):
            changed = bool(np.abs(frames[at] - frames[at + 1]).max())
            assert not changed or any(start - 1 < at < end + 1 for start, end in spans)


def test_the_amounts_of_an_invoice_add_up():
    for number in range(50):
        said = create_scene("evaluate", "invoice", number).answer
        cents = sum(round(100 * float(line["amount"])) for line in said["lines"])
        assert cents == round(100 * float(said["total"]))


@pytest.mark.parametrize("task", TASKS)
def test_every_truth_is_an_answer_of_the_shipped_schema(task):
    asked = schema_loader.load_schema(vocabulary.TASK_SCHEMAS[task], base_folder=Path())
    for number in range(20):
        assert asked.to_typed_answer(create_scene("evaluate", task, number).answer)


def test_a_clip_becomes_a_video_of_as_many_frames(tmp_path):
    manifest = scene_files.write_scene_files(tmp_path, "video", 2, first_scene=3)
    rows = pq.read_table(manifest).to_pylist()
    with av.open(str(tmp_path / rows[0]["media"])) as film:
        count = sum(1 for _ in film.decode(video=0))
    assert count == create_scene("evaluate", "video", 3).frame_count
    assert [json.loads(row["truth"]) for row in rows] == [create_scene("evaluate", "video", at).answer for at in (3, 4)]
