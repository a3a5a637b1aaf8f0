"""Compares a value of an answer with the true value.

To add a comparator, write a function, and name it in COMPARATORS and in VALUE_KINDS of truth/compared_fields.py.

A schema chooses one with `json_schema_extra={"x-compare": "code"}`, or with settings:
`{"x-compare": {"by": "number", "tolerance": 0.05}}`. Fields that choose none get one by their type.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from pipeline.inspect.score.box_matching import compute_ious
from pipeline.inspect.score.text_distance import (
    compute_anls,
    compute_edit_distance,
    compute_similarity,
    normalize_code,
    normalize_text,
)
from pipeline.json_values import parse_json_text

Settings = Mapping[str, Any]
Share = tuple[
    float, float
]  # a sum and what it is a share of; figures of many rows are added up before they are divided


class Comparison(NamedTuple):
    is_right: bool
    similarity: float  # from 0 to 1; lists are paired by it
    figures: Mapping[str, Share] = {}


def compare_exactly(answer: Any, truth: Any, settings: Settings) -> Comparison:
    return judge(to_text(drop_nulls(answer)) == to_text(drop_nulls(truth)))


def drop_nulls(value: Any) -> Any:
    """A value as a model would write it. A column of objects of several kinds has nulls for the fields of the others,
    and a column without a fixed shape has JSON text.

    >>> drop_nulls({"kind": "a", "n": 0, "t": None}), drop_nulls('"a"'), drop_nulls('[{"x": null}]')
    ({'kind': 'a', 'n': 0}, 'a', [{}])
    """
    value = parse_json_text(value)
    if isinstance(value, dict):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [drop_nulls(part) for part in value]
    with suppress(ValueError):
        return json.loads(value) if isinstance(value, str) and value[:1] == '"' else value
    return value


def compare_choices(answer: Any, truth: Any, settings: Settings) -> Comparison:
    return judge(to_text(answer) == to_text(truth))


def compare_codes(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Numbers of documents, articles, taxes: case, spaces and punctuation do not count."""
    codes = [normalize_code(to_text(value)) for value in (answer, truth)]
    return Comparison(codes[0] == codes[1], compute_similarity(*codes))


def compare_texts(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Right if both are the same but for case and white space, or as similar as `at_least` says (0 to 1)."""
    one, other = to_text(answer), to_text(truth)
    similarity = compute_similarity(one, other)
    figures = {"exact": (float(one == other), 1.0), "ANLS": (compute_anls(one, other), 1.0)}
    if other:
        figures["character error rate"] = (compute_edit_distance(one, other), len(other))
    is_right = (
        similarity >= settings["at_least"] if "at_least" in settings else normalize_text(one) == normalize_text(other)
    )
    return Comparison(is_right, similarity, figures)


def compare_paths(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Places in a taxonomy, level by level up to the first that differs: `separator` stands between them (">")."""
    levels = [split_levels(to_text(value), settings.get("separator", ">")) for value in (answer, truth)]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*levels, strict=False)))
    most = max(map(len, levels))
    return Comparison(levels[0] == levels[1], shared / most if most else 1.0, count_hits(shared, *map(len, levels)))


def split_levels(path: str, separator: str) -> list[str]:
    return [normalize_text(level) for level in path.split(separator) if level.strip()]


def compare_numbers(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Right within `tolerance`, or within the share `relative` of the true number."""
    number, true = to_number(answer), to_number(truth)
    if number is None or true is None:
        return judge(to_text(answer) == to_text(truth))
    error = float(abs(number - true))
    allowed = max(settings.get("tolerance", 0), settings.get("relative", 0) * abs(float(true)))
    is_right = error <= allowed or math.isclose(number, true, rel_tol=1e-9)
    return Comparison(is_right, float(is_right), {"mean error": (error, 1.0)})


def compare_dates(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Right if not more than `days` apart."""
    moments = [to_moment(value) for value in (answer, truth)]
    if moments[0] is None or moments[1] is None:
        return judge(to_text(answer) == to_text(truth))
    return judge(abs((moments[0] - moments[1]).total_seconds()) <= settings.get("days", 0) * 86400)


def compare_sets(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Lists of which the order does not count."""
    lists = [drop_nulls(to_list(each)) for each in (answer, truth)]
    answered, true = (Counter(normalize_text(to_text(value)) for value in values) for values in lists)
    figures = count_hits((answered & true).total(), answered.total(), true.total())
    most = max(answered.total(), true.total())
    return Comparison(answered == true, (answered & true).total() / most if most else 1.0, figures)


def compare_boxes(answer: Any, truth: Any, settings: Settings) -> Comparison:
    """Right if they overlap by half, or by what `overlap` says."""
    one, other = (np.array([box], dtype=float) for box in (answer or [0] * 4, truth or [0] * 4))
    iou = float(compute_ious(one, other, np.zeros(1, dtype=bool))[0, 0])
    return Comparison(iou >= settings.get("overlap", 0.5), iou, {"IoU": (iou, 1.0)})


COMPARATORS: dict[str, Callable[[Any, Any, Settings], Comparison]] = {
    "exact": compare_exactly,
    "choice": compare_choices,
    "code": compare_codes,
    "text": compare_texts,
    "path": compare_paths,
    "number": compare_numbers,
    "date": compare_dates,
    "set": compare_sets,
    "box": compare_boxes,
}


def compare_values(comparator: str, answer: Any, truth: Any, settings: Settings) -> Comparison:
    """A null is right only where the truth is null; an empty text counts as null, an empty list does not."""
    answer, truth = (None if value == "" else value for value in (answer, truth))
    if answer is None and truth is None and comparator != "set":
        return judge(True)
    return COMPARATORS[comparator](answer, truth, settings)


def judge(is_right: bool) -> Comparison:
    return Comparison(is_right, float(is_right))


def count_hits(hits: float, answered: float, true: float) -> dict[str, Share]:
    """
    >>> count_hits(1, 2, 4)
    {'F1': (2, 6), 'precision': (1, 2), 'recall': (1, 4)}
    """
    return {"F1": (2 * hits, answered + true), "precision": (hits, answered), "recall": (hits, true)}


def to_list(value: Any) -> list[Any]:
    """A list as it is, or as a table of texts holds it.

    >>> to_list('["a", "b"]'), to_list("a"), to_list(None)
    (['a', 'b'], ['a'], [])
    """
    value = parse_json_text(value)
    return value if isinstance(value, list) else [] if value is None else [value]


def to_text(value: Any) -> str:
    """One text for a typed value and for the same value in a table of texts.

    >>> [to_text(value) for value in (True, "true", None, date(2026, 3, 2), 2.0, {"a": [1]})]
    ['true', 'true', '', '2026-03-02', '2', '{"a": [1]}']
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_json = isinstance(value, dict | list)
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False) if is_json else str(value)


def to_number(value: Any) -> Decimal | None:
    try:
        number = Decimal(to_text(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def to_moment(value: Any) -> datetime | None:
    """
    >>> to_moment("2026-03-02") == to_moment(date(2026, 3, 2)), to_moment("soon")
    (True, None)
    """
    try:
        moment = datetime.fromisoformat(value.isoformat() if isinstance(value, date) else str(value).strip())
    except ValueError:
        return None
    return moment.replace(tzinfo=None) - (moment.utcoffset() or moment - moment)
