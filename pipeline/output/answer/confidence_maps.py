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
    return min(list_confidences(calibrate_answer(confidence, maps)), default=1.0)


def calibrate_answer(value: Any, maps: ConfidenceMaps, path: str = "", outer: ConfidenceMap | None = None) -> Any:
    """The confidences of an answer, or of a part of it, in the same shape, with scores as values where they stand for
    these. `outer` is the map of what contains it."""
    if isinstance(value, dict):
        own = maps.get(path, outer) if path else None
        inner = own
        if SCORE in value:
            inner = SCORE_STANDS if own is not None else None
        prefix = f"{path}." if path else ""
        return {
            name: calibrate_answer(part, maps, f"{prefix}{name}", own if name == SCORE else inner)
            for name, part in value.items()
        }
    own = maps.get(path or WHOLE_ANSWER, outer)
    if isinstance(value, list):
        paths = (f"{path}[]" if isinstance(part, dict) else path for part in value)
        return [calibrate_answer(part, maps, part_path, own) for part, part_path in zip(value, paths, strict=True)]
    if isinstance(value, tuple):  # a free key and the confidence of its value
        return (value[0], calibrate_answer(value[1], maps, path, own))
    if value is None or own is None:
        return value
    return None if own is SCORE_STANDS else float(apply_map(value, own))


def calibrate_column(table: pa.Table, maps: ConfidenceMaps) -> pa.Table:
    """A table of rows with its column `confidence` calibrated."""
    index = table.schema.get_field_index("confidence")
    if index < 0:
        return table
    field = table.schema.field(index)
    chunks = [calibrate_array(pa.concat_arrays([chunk]), maps) for chunk in table[field.name].chunks]
    return table.set_column(index, field, pa.chunked_array(chunks, field.type))


def calibrate_array(
    array: pa.Array, maps: ConfidenceMaps, path: str = "", outer: ConfidenceMap | None = None
) -> pa.Array:
    """A column of confidences, or a part of one. `outer` is the map of what contains it."""
    if pa.types.is_struct(array.type):
        own = maps.get(path, outer) if path else None
        prefix, names = f"{path}." if path else "", [member.name for member in array.type]
        inner = None if SCORE in names else own
        parts = [
            calibrate_array(array.field(name), maps, f"{prefix}{name}", own if name == SCORE else inner)
            for name in names
        ]
        return pa.StructArray.from_arrays(parts, fields=list(array.type), mask=array.is_null())
    own = maps.get(path or WHOLE_ANSWER, outer)
    if pa.types.is_map(array.type):
        items = calibrate_array(array.items, maps, path, own)
        return pa.MapArray.from_arrays(array.offsets, array.keys, items, type=array.type, mask=array.is_null())
    if pa.types.is_list(array.type):
        is_object = pa.types.is_struct(array.type.value_type)
        values = calibrate_array(array.values, maps, f"{path}[]" if is_object else path, own)
        return pa.ListArray.from_arrays(array.offsets, values, type=array.type, mask=array.is_null())
    if own is None:
        return array
    values = apply_map(array.to_numpy(zero_copy_only=False), own)
    return pa.array(values, array.type, mask=array.is_null().to_numpy(zero_copy_only=False))
