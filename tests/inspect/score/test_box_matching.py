"""Average precision against pycocotools."""

from __future__ import annotations

import contextlib
import io
import random

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.inspect.score import estimate_precision
from pipeline.inspect.score.box_matching import BoxRanking, match_boxes

CLASSES = ("cat", "dog", "bird")


def draw_boxes(rng, count, near=()):
    """Boxes [x1, y1, x2, y2] in whole pixels; half of them lie near given ones."""
    boxes = []
    for _ in range(count):
        left, top, width, height = (rng.randrange(1, 60) for _ in range(4))
        if near and rng.random() < 0.7:
            x1, y1, x2, y2 = rng.choice(near)
            left, top = x1 + rng.randrange(-4, 5), y1 + rng.randrange(-4, 5)
            width, height = max(1, x2 - x1 + rng.randrange(-4, 5)), max(1, y2 - y1 + rng.randrange(-4, 5))
        boxes.append([left, top, left + width, top + height])
    return boxes


def draw_pictures(rng):
    """(picture, class, answered boxes, scores, true boxes, crowds) of a few pictures; many scores are equal."""
    for picture in range(1, rng.randrange(2, 6)):
        for label in CLASSES:
            truths = draw_boxes(rng, rng.choice((0, 1, 2, 5)))
            answers = draw_boxes(rng, rng.choice((0, 1, 3, 6)), truths)
            if rng.random() < 0.02:
                answers = draw_boxes(rng, 120, truths)
            scores = [rng.choice((0.2, 0.5, 0.9, rng.random())) for _ in answers]
            yield picture, label, answers, scores, truths, [rng.random() < 0.15 for _ in truths]


def run_pycocotools(pictures):
    def to_record(picture, label, box, **more):
        left, top, right, bottom = box
        record = {"image_id": picture, "category_id": CLASSES.index(label) + 1, **more}
        return record | {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}

    coco = COCO()
    truths = [
        to_record(picture, label, box, iscrowd=int(crowd))
        for picture, label, _, _, boxes, crowds in pictures
        for box, crowd in zip(boxes, crowds, strict=True)
    ]
    coco.dataset = {"info": {}, "images": [{"id": picture} for picture in {each[0] for each in pictures}]}
    coco.dataset["categories"] = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco.dataset["annotations"] = [record | {"id": number} for number, record in enumerate(truths, 1)]
    coco.createIndex()
    answers = [
        to_record(picture, label, box, score=score)
        for picture, label, boxes, scores, _, _ in pictures
        for box, score in zip(boxes, scores, strict=True)
    ]
    evaluation = COCOeval(coco, coco.loadRes(answers), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [evaluation.stats[index] for index in (1, 0, 8)]


def add_picture(ranking, row, label, answers, scores, truths, crowds):
    boxes, true_boxes = (np.array(each, dtype=float).reshape(-1, 4) for each in (answers, truths))
    scores, crowds = np.array(scores, dtype=float), np.array(crowds, dtype=bool)
    matches = match_boxes(boxes, scores, true_boxes, crowds)
    ranking.add_picture(row, label, matches, scores, int((~crowds).sum()))


@pytest.mark.process
def test_average_precision_equals_that_of_pycocotools():
    compared = 0
    for case in range(210):
        pictures = list(draw_pictures(random.Random(case)))
        if not any(answers for _, _, answers, *_ in pictures):
            continue
        ranking = BoxRanking()
        for each in pictures:
            add_picture(ranking, *each)
        with contextlib.redirect_stdout(io.StringIO()):
            expected = run_pycocotools(pictures)
        computed = [-1 if value is None else value for value in ranking.compute()]
        assert computed == pytest.approx(expected, abs=1e-6), case
        compared += 1
    assert compared >= 200


def test_a_row_of_weight_two_counts_as_two_rows():
    pictures = [each for each in draw_pictures(random.Random(7)) if each[0] <= 2]
    once, twice = BoxRanking(), BoxRanking()
    for number, (picture, *rest) in enumerate(pictures):
        distinct = [
            rest[0],
            rest[1],
            [score + number / 1000 + at / 10**5 for at, score in enumerate(rest[2])],
            *rest[3:],
        ]
        add_picture(once, picture - 1, *distinct)
        for row in [picture - 1] * (1 + (picture == 2)):
            add_picture(twice, row, *distinct)
    assert twice.compute() == pytest.approx(once.compute(np.array([1.0, 2.0])), abs=1e-9)


def test_the_interval_of_a_precision_is_around_its_value():
    """Percentiles of resampled precisions need not be: pictures that repeat raise the precision."""
    rng, ranking = np.random.default_rng(0), BoxRanking()
    for row in range(120):
        for label in rng.integers(0, 30, 4):
            corners = rng.uniform(0, 100, (2, 2))
            truths = np.concatenate([corners, corners + 30], axis=1)
            answers = truths + rng.normal(0, 4, truths.shape)
            add_picture(ranking, row, str(label), answers, rng.random(2), truths, [False, False])
    for value, low, high in estimate_precision(ranking, 120).values():
        assert low < value < high
        assert value - low == pytest.approx(high - value)
        assert high - low < 0.12
