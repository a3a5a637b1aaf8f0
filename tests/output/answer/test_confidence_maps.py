"""Confidences are replaced by what the newest score found for their field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.output.answer.confidence import Score
from pipeline.output.answer.confidence_maps import (
    calibrate_column,
    find_least_confidence,
    hash_confidence_maps,
    read_confidence_maps,
)
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore

HALF = np.array([(0.0, 0.0), (1.0, 0.5)])
TENTH = np.array([(0.0, 0.0), (1.0, 0.1)])
BOX = {"bbox_2d": [0.8, 0.9, None], "label": 0.6, "score": Score(0.4)}


def write_score(folder: Path, name: str, time: str | None, fields: object) -> Dataset:
    dataset = Dataset(OutputStore(str(folder)), "f")
    dataset.write_score(name, json.dumps({"fields": fields} | ({"time": time} if time else {})))
    return dataset


def describe_field(share: float, error: float | None = 0.01) -> dict[str, object]:
    return {"confidence": {"calibrated_error": error, "calibration": [[0.0, 0.0], [1.0, share]]}}


def calibrate(value: object, maps: dict[str, np.ndarray], data_type: pa.DataType | None = None) -> Any:
    """The middle row of three, in the second chunk of two."""
    column = pa.chunked_array(
        [pa.array([None], data_type or pa.array([value]).type), pa.array([value, value], data_type)]
    )
    (calibrated,) = calibrate_column(pa.table({"confidence": column}).slice(1, 1), maps)["confidence"].to_pylist()
    assert calibrate_column(pa.table({"confidence": column}), maps)["confidence"].to_pylist() == [
        None,
        calibrated,
        calibrated,
    ]
    return calibrated


def test_each_value_is_calibrated_by_the_map_of_its_path() -> None:
    answer = {"answer": 0.5, "total": 0.8, "lines": [{"amount": 0.6, "name": 0.6}, None], "tags": [0.2, None, 0.4]}
    calibrated = calibrate(answer, {"answer": HALF, "lines[].amount": HALF, "tags": TENTH})
    assert calibrated["lines"] == [pytest.approx({"amount": 0.3, "name": 0.6}), None]
    assert calibrated["tags"][::2] == pytest.approx([0.02, 0.04])
    assert (calibrated["tags"][1], calibrated["answer"], calibrated["total"]) == (None, 0.25, 0.8)


def test_the_map_of_a_list_of_boxes_is_for_their_scores() -> None:
    calibrated = calibrate({"boxes": [BOX]}, {"boxes": HALF, "boxes[].label": TENTH})
    assert calibrated["boxes"][0]["bbox_2d"] == [0.8, 0.9, None]
    assert calibrated["boxes"][0]["label"] == pytest.approx(0.06)
    assert calibrated["boxes"][0]["score"] == pytest.approx(0.2)


def test_a_field_that_is_judged_as_a_whole_has_one_map_for_all_its_parts() -> None:
    assert calibrate({"notes": {"a": 0.4, "b": [0.2]}}, {"notes": HALF}) == {"notes": {"a": 0.2, "b": [0.1]}}
    pairs = pa.struct([("free", pa.map_(pa.string(), pa.float64()))])
    assert calibrate({"free": [("a", 0.4)]}, {"free": HALF}, pairs) == {"free": [("a", 0.2)]}
    assert calibrate([0.4], {"answer": HALF}) == [0.2]


def test_a_calibrated_score_stands_for_the_coordinates_of_its_box() -> None:
    assert find_least_confidence({"boxes": [BOX]}, {}) == 0.6  # without scores
    assert find_least_confidence({"boxes": [BOX]}, {"boxes": HALF}) == pytest.approx(0.2)
    rising = np.array([(0.0, 0.95), (1.0, 0.95)])
    assert find_least_confidence({"boxes": [BOX]}, {"boxes": rising}) == pytest.approx(0.95)
    assert find_least_confidence({"boxes": [BOX]}, {"boxes": rising, "boxes[].label": HALF}) == pytest.approx(0.3)
    assert find_least_confidence(None, {"boxes": HALF}) == 1.0


def test_a_column_keeps_its_type_and_its_nulls() -> None:
    column = pa.array([{"a": 0.5}, None], pa.struct([("a", pa.float32())]))
    table = calibrate_column(pa.table({"id": ["x", "y"], "confidence": column}), {"a": HALF})
    assert table["confidence"].to_pylist() == [{"a": 0.25}, None]
    assert table.schema.field("confidence").type == column.type
    assert calibrate_column(pa.table({"id": ["x"]}), {"a": HALF}).column_names == ["id"]


def test_the_newest_score_is_the_one_that_was_measured_last(tmp_path: Path) -> None:
    assert read_confidence_maps(Dataset(OutputStore(str(tmp_path)), "f")) == {}
    write_score(tmp_path, "a", "2026-11-02T00:00:00.000000+00:00", {"x": describe_field(0.5)})
    write_score(tmp_path, "b", "2026-11-01T00:00:00.000000+00:00", {"y": describe_field(0.5)})
    dataset = write_score(tmp_path, "z", None, {"z": describe_field(0.5)})  # of a version that noted no time
    assert list(read_confidence_maps(dataset)) == ["x"]


def test_a_map_of_few_values_is_not_used(tmp_path: Path) -> None:
    fields = {"few": describe_field(0.5, None), "x": describe_field(0.5), "none": {"confidence": None}}
    maps = read_confidence_maps(write_score(tmp_path, "a", None, fields))
    assert list(maps) == ["x"]
    assert hash_confidence_maps(maps) == hash_confidence_maps({"x": HALF}) != hash_confidence_maps({"x": TENTH})


@pytest.mark.parametrize("fields", [{"x": {}}, {"x": {"confidence": {"calibrated_error": 0, "calibration": ["a"]}}}, 3])
def test_a_score_that_cannot_be_read_is_said(tmp_path: Path, fields: object) -> None:
    with pytest.raises(OutputError, match="the newest score cannot be read"):
        read_confidence_maps(write_score(tmp_path, "a", None, fields))
