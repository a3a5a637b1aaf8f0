"""The scores of the built-in evaluation."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from pipeline.builtin.scores import score_answers

TRUTH = {"boxes": [{"bbox_2d": [0, 0, 10, 10], "label": "dog"}, {"bbox_2d": [20, 20, 30, 30], "label": "cat"}]}


def test_a_perfect_answer_scores_one():
    assert score_answers("detect", [(TRUTH, TRUTH)]) == {"valid": 1.0, "IoU": 1.0, "label": 1.0}


def test_surplus_and_missing_boxes_lower_the_score():
    surplus = {"boxes": [*TRUTH["boxes"], {"bbox_2d": [50, 50, 60, 60], "label": "dog"}]}
    missing = {"boxes": TRUTH["boxes"][:1]}
    assert score_answers("detect", [(surplus, TRUTH)])["IoU"] == pytest.approx(2 / 3)
    assert score_answers("detect", [(missing, TRUTH)])["label"] == pytest.approx(1 / 2)


def test_a_missing_answer_is_invalid_and_scores_zero():
    assert score_answers("detect", [(None, TRUTH)]) == {"valid": 0.0, "IoU": 0.0, "label": 0.0}


def test_half_of_the_time_span_scores_half():
    answer, truth = ({"events": [{"what": "A red cross appears.", "start": 0.0, "end": end}]} for end in (1.0, 2.0))
    assert score_answers("video", [(answer, truth)]) == {"valid": 1.0, "kind": 1.0, "what": 1.0, "time": 0.5}


def test_an_invented_event_scores_zero():
    answer = {"events": [{"what": "A red cross appears.", "start": 0.0, "end": 1.0}]}
    assert score_answers("video", [(answer, {"events": []})])["kind"] == 0.0


def test_typed_columns_equal_the_printed_text():
    truth = {"number": "0420", "issued": "2026-03-02", "total": "10.00", "currency": "EUR", "seller": {"name": "Ibis"}}
    truth |= {"lines": [{"description": "Ink", "amount": "10.00"}]}
    typed = truth | {"issued": date(2026, 3, 2), "total": Decimal("10.0000")}
    typed |= {"seller": {"name": "Ibis", "tax_id": None}}
    typed |= {"lines": [{"description": "Ink", "quantity": None, "amount": Decimal("10.0000")}]}
    assert score_answers("invoice", [(typed, truth)])["all fields"] == 1.0
    assert score_answers("invoice", [(typed | {"number": "420"}, truth)])["number"] == 0.0
