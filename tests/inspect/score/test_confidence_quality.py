"""What confidences are worth, and how boxes are ranked by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.inspect.score.confidence_quality import measure_confidence
from pipeline.inspect.score.row_marks import RowMarker, mark_row
from pipeline.schema.schema_loader import load_annotated_schema
from pipeline.truth.compared_fields import build_compared_fields

DOG = {"bbox_2d": [10, 10, 50, 50], "label": "dog"}
SPURIOUS = {"bbox_2d": [60, 60, 90, 90], "label": "dog"}


def test_auroc_and_calibration_error_are_the_usual_ones():
    rng = np.random.default_rng(6)
    confidences = rng.integers(1, 20, 4000) / 20  # many are equal
    right = rng.random(4000) < confidences
    honest = measure_confidence([[each] for each in zip(confidences.tolist(), right.tolist(), strict=True)])
    assert honest.auroc == pytest.approx(roc_auc_score(right, confidences))
    assert honest.calibration_error < 0.03
    boastful = measure_confidence([[(0.95, bool(each))] for each in right])
    assert boastful.calibration_error == pytest.approx(0.95 - right.mean(), abs=0.01)
    assert boastful.auroc == pytest.approx(0.5)
    assert measure_confidence([[(0.9, True)]]).auroc is None
    assert measure_confidence([[], []]) is None


@pytest.mark.parametrize(("scores", "precision"), [((0.9, 0.2), 1.0), ((0.2, 0.9), 0.5)])
def test_boxes_are_ranked_by_their_scores(scores, precision):
    root = build_compared_fields(load_annotated_schema("boxes", base_folder=Path()))
    answer = {"boxes": [dict(DOG), dict(SPURIOUS)]}
    marker = RowMarker(0, 100.0, 1.0, {})
    boxes = [{"bbox_2d": [1.0] * 4, "label": 0.8, "image": None, "score": score} for score in scores]
    marker.take_confidences(answer, {"boxes": boxes})
    marks = mark_row(root, "a", answer, {"boxes": [DOG]}, marker)
    assert marks.judged["boxes"] == [(scores[0], True), (scores[1], False)]
    assert marker.rankings["boxes"].compute().ap50 == pytest.approx(precision)
