"""True answers from people's files get the types of the schema's columns."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.schema.columns import to_arrow_field
from pipeline.schema.schema_loader import load_annotated_schema
from pipeline.truth.typed_truth import type_truth


def load_field(name):
    return to_arrow_field(load_annotated_schema(name, base_folder=Path()))


def test_text_from_tables_becomes_numbers_dates_and_lists():
    lines = '[{"description": "Ink", "amount": 2.5}]'
    given = {"number": 17, "issued": "2026-03-02", "due": "", "total": "12.50", "lines": lines, "seller": {"name": "A"}}
    typed = type_truth(given, load_field("invoice"), "r1")
    assert (typed["number"], typed["issued"], typed["due"]) == ("17", date(2026, 3, 2), None)
    assert (typed["total"], typed["lines"][0]["amount"]) == (Decimal("12.5"), Decimal("2.5"))
    assert typed["seller"] == {"name": "A", "address": None, "tax_id": None}
    assert type_truth({**given, "issued": date(2026, 3, 2)}, load_field("invoice"), "r1") == typed


def test_boxes_are_rounded_and_crowds_are_left_out():
    boxes = [{"bbox_2d": [9.9999, 20, 40.2, 60], "label": "dog", "iscrowd": 0}, {"bbox_2d": [0, 0, 9, 9], "iscrowd": 1}]
    assert type_truth({"boxes": boxes}, load_field("boxes"), "r1") == {
        "boxes": [{"bbox_2d": [10, 20, 40, 60], "label": "dog", "image": None}]
    }


def test_a_value_that_does_not_fit_is_refused_with_its_row():
    with pytest.raises(OutputError, match=r"the truth of row r1: .*'ten'.* does not fit"):
        type_truth({"total": "ten"}, load_field("invoice"), "r1")
