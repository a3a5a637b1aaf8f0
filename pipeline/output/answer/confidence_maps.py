"""Replaces confidences by the shares of right values that the newest score of a question found for them.

A score fits a map for each field that it judged, by path: `total`, `lines[].amount`. The map of a list of boxes, points
or events is for the scores of its elements. A field that was judged as a whole, such as a list of texts, has one map
for all its values. Values of other fields keep their confidences.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from pipeline.errors import OutputError
from pipeline.output.answer.confidence import SCORE, list_confidences
from pipeline.output.dataset import Dataset
from pipeline.types import ConfidenceMap, ConfidenceMaps

WHOLE_ANSWER = "answer"  # the path of an answer that is no object
SCORE_STANDS: ConfidenceMap = np.empty((0, 2))  # in place of the map of a value that does not count


def read_confidence_maps(dataset: Dataset) -> ConfidenceMaps:
    """Empty if there is no score. A map that few values made is left out: nothing tells whether it holds."""
    score = dataset.read_newest_score() or {}
    try:
        qualities = {path: field["confidence"] for path, field in score.get("fields", {}).items()}
        return {
            path: np.array(quality["calibration"], dtype=float).reshape(-1, 2)
            for path, quality in qualities.items()
            if quality and quality.get("calibrated_error") is not None
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        where = f"{dataset.store.path}/scores/{dataset.fingerprint}"
        raise OutputError(f"{where}: the newest score cannot be read ({error!r}); run `score` once more") from error


def hash_confidence_maps(maps: ConfidenceMaps) -> str:
    text = json.dumps({path: points.tolist() for path, points in maps.items()}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def apply_map(confidences: Any, points: ArrayLike) -> Any:
    """
    >>> float(apply_map(0.75, [(0.5, 0.2), (1.0, 0.6)])), float(apply_map(0.1, [(0.5, 0.2), (1.0, 0.6)]))
    (0.4, 0.2)
    """
    return np.interp(confidences, *np.transpose(points))


def find_least_confidence(confidence: Any, maps: ConfidenceMaps) -> float:
    """The least calibrated confidence of an answer's values; 1 where nothing is known. Where the score of an object is
    calibrated, it stands for the values that have no map: coordinates are not judged one by one."""
    return min(list_confidences(calibrate(confidence, maps, scores_stand=True)), default=1.0)


def calibrate(
    value: Any, maps: ConfidenceMaps, path: str = "", outer: ConfidenceMap | None = None, *, scores_stand: bool = False
) -> Any:
    """The confidences of an answer, or of a part of it, in the same shape. `outer` is the map of what contains it."""
    if isinstance(value, dict):
        own = maps.get(path, outer) if path else None
        inner = own
        if SCORE in value:
            inner = SCORE_STANDS if scores_stand and own is not None else None
        prefix = f"{path}." if path else ""
        return {
            name: calibrate(part, maps, f"{prefix}{name}", own if name == SCORE else inner, scores_stand=scores_stand)
            for name, part in value.items()
        }
    own = maps.get(path or WHOLE_ANSWER, outer)
    if isinstance(value, list):
        paths = (f"{path}[]" if isinstance(part, dict) else path for part in value)
        return [
            calibrate(part, maps, part_path, own, scores_stand=scores_stand)
            for part, part_path in zip(value, paths, strict=True)
        ]
    if isinstance(value, tuple):  # a free key and the confidence of its value
        return (value[0], calibrate(value[1], maps, path, own, scores_stand=scores_stand))
    if value is None or own is None:
        return value
    if own is SCORE_STANDS:
        return None
    return (float if scores_stand else type(value))(apply_map(value, own))


def calibrate_column(table: pa.Table, maps: ConfidenceMaps) -> pa.Table:
    """A table of rows with its column `confidence` calibrated."""
    index = table.schema.get_field_index("confidence")
    if index < 0:
        return table
    field = table.schema.field(index)
    values = [calibrate(confidence, maps) for confidence in table[field.name].to_pylist()]
    return table.set_column(index, field, pa.array(values, field.type))
