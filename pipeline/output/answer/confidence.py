"""Computes how sure the model was of each value of an answer, in the shape of the answer.

Each value in the model's text is made of tokens, and the engine says how probable they were. A number, a date, a choice
or a boolean has the probability of all of its tokens; text has the geometric mean, so that long texts compare with
short ones. Tokens that the grammar forced do not count, and a value made only of them has no confidence. An object with
a box, a point or a time also has a `score`, by which detections are ranked: the probability of all its values' tokens.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.output.answer.geometry import find_field_meanings
from pipeline.schema.columns import JSON_TEXT_METADATA
from pipeline.schema.json_schema import walk_schema
from pipeline.schema.schema import Schema
from pipeline.types import TokenLogprob

SCALAR = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')(\s*:)?|[^\s,:\[\]{}"']+""", re.DOTALL)
FIRST_TO_LAST_BRACKET = re.compile(r"[{\[].*[}\]]", re.DOTALL)
SCORE = "score"
PLACES = ("box", "point", "seconds")


class Score(float):
    """Of an object as a whole, beside the confidences of its values."""


class SpelledValue(NamedTuple):
    logprob_sum: float
    token_count: int  # without forced tokens

    def to_confidence(self, *, is_text: bool) -> float | None:
        if not self.token_count:
            return None
        return math.exp(self.logprob_sum / (self.token_count if is_text else 1))


def build_confidence_field(schema: Schema) -> pa.Field:
    """The column `confidence`: the column of the answers, with a number for every value."""
    return pa.field("confidence", _to_confidence_type(schema.answer_field, _find_places(schema.text)))


def _to_confidence_type(answer_field: pa.Field, places: frozenset[str]) -> pa.DataType:
    data_type = answer_field.type
    if answer_field.metadata == JSON_TEXT_METADATA:
        return pa.float32()
    if pa.types.is_struct(data_type):
        members = [member.with_type(_to_confidence_type(member, places)).remove_metadata() for member in data_type]
        return pa.struct([*members, *([pa.field(SCORE, pa.float32())] if _has_score(data_type, places) else [])])
    if pa.types.is_map(data_type):
        return pa.map_(pa.string(), _to_confidence_type(data_type.item_field, places))
    if pa.types.is_list(data_type):
        return pa.list_(pa.field("element", _to_confidence_type(data_type.value_field, places)))
    return pa.float32()


def _has_score(data_type: pa.StructType, places: frozenset[str]) -> bool:
    names = {member.name for member in data_type}
    return SCORE not in names and not names.isdisjoint(places)


def compute_confidence(
    parsed: Any,
    answer: Any,
    *,
    text: str,
    tokens: Sequence[TokenLogprob],
    schema: Schema,
    dropped: Sequence[Any] = (),
) -> Any:
    """Confidences for a column of `build_confidence_field`; None where the values are not found in the text.

    `parsed` is what the text says, `answer` the checked answer, and `dropped` those of its elements that mapping to the
    original removed.
    """
    scalars = iter(_find_spelled_values(text, tokens))
    try:
        spelled = _attach(parsed, scalars)
    except StopIteration:
        return None
    if next(scalars, None) is not None:
        return None
    dropped_ids = {id(part) for part in dropped if part is not None}
    builder = _ConfidenceBuilder(_find_places(schema.text), _find_choices(schema.text), dropped_ids)
    return builder.build(answer, spelled, schema.answer_field)


def list_confidences(confidence: Any, answer: Any = None) -> Iterator[float]:
    """The confidences of all values, without scores. Those that were read from a file are known by the answer.

    >>> list(list_confidences({"boxes": [{"bbox_2d": [0.9, 0.8], "label": None, "score": Score(0.72)}]}))
    [0.9, 0.8]
    >>> list(list_confidences([{"x": 0.9, "score": 0.5}, {"x": 0.8, "score": 0.4}], [{"x": 1}, {"x": 2, "score": 3}]))
    [0.9, 0.8, 0.4]
    """
    if isinstance(confidence, dict):
        parts = answer if isinstance(answer, dict) else {}
        for name, part in confidence.items():
            if not parts or name != SCORE or SCORE in parts:
                yield from list_confidences(part, parts.get(name))
    elif isinstance(confidence, (list, tuple)):
        answers = answer if isinstance(answer, (list, tuple)) and len(answer) == len(confidence) else repeat(None)
        for part, element in zip(confidence, answers, strict=False):
            yield from list_confidences(part, element)
    elif isinstance(confidence, float) and not isinstance(confidence, Score):
        yield confidence


def _find_spelled_values(text: str, tokens: Sequence[TokenLogprob]) -> Iterator[SpelledValue]:
    """The scalars of a JSON text in order, each with the tokens that overlap it. Keys are none."""
    whole = FIRST_TO_LAST_BRACKET.search(text)
    begin, end = whole.span() if whole else (0, len(text))
    ends = [token.end for token in tokens]
    for match in SCALAR.finditer(text, begin, end):
        if not match[2]:
            after_quote = match.start() + (match[1] is not None)  # which often shares its token with the colon
            spelling = tokens[bisect_right(ends, after_quote) : bisect_left(ends, match.end()) + 1]
            logprobs = [token.logprob for token in spelling if token.logprob is not None]
            yield SpelledValue(sum(logprobs), len(logprobs))


def _attach(value: Any, scalars: Iterator[SpelledValue]) -> Any:
    """The value with what spells it in the place of each scalar."""
    if isinstance(value, dict):
        return {name: _attach(part, scalars) for name, part in value.items()}
    if isinstance(value, list):
        return [_attach(part, scalars) for part in value]
    return next(scalars)


def _add_up(spelled: Any) -> SpelledValue:
    """All values of an object as one."""
    if isinstance(spelled, SpelledValue):
        return spelled
    parts = list(spelled.values()) if isinstance(spelled, dict) else spelled if isinstance(spelled, list) else []
    return SpelledValue(*map(sum, zip((0.0, 0), *map(_add_up, parts), strict=True)))


class _ConfidenceBuilder:
    def __init__(self, places: frozenset[str], choices: frozenset[str], dropped: set[int]):
        self.places, self.choices, self.dropped = places, choices, dropped

    def build(self, value: Any, spelled: Any, answer_field: pa.Field) -> Any:
        """Follow the answer and what spells it together. Where a validator changed the shape, nothing is known."""
        data_type = answer_field.type
        if id(value) in self.dropped:
            return None
        if answer_field.metadata == JSON_TEXT_METADATA:
            return min(list_confidences(self.build_untyped(value, spelled)), default=None)
        if pa.types.is_struct(data_type) and isinstance(value, dict):
            parts = spelled if isinstance(spelled, dict) else {}
            result = {
                member.name: self.build(value.get(member.name), parts.get(member.name), member) for member in data_type
            }
            if _has_score(data_type, self.places):
                whole = _add_up(parts)
                result[SCORE] = Score(math.exp(whole.logprob_sum)) if whole.token_count else None
            return result
        if pa.types.is_map(data_type) and isinstance(value, dict):
            parts = spelled if isinstance(spelled, dict) else {}
            return [(name, self.build(part, parts.get(name), data_type.item_field)) for name, part in value.items()]
        if pa.types.is_list(data_type) and isinstance(value, list):
            pieces = spelled if isinstance(spelled, list) and len(spelled) == len(value) else [None] * len(value)
            return [
                self.build(part, piece, data_type.value_field)
                for part, piece in zip(value, pieces, strict=True)
                if part is None or id(part) not in self.dropped
            ]
        if pa.types.is_nested(data_type):
            return None
        return self.to_confidence(value, spelled, is_text=pa.types.is_string(data_type))

    def build_untyped(self, value: Any, spelled: Any) -> Any:
        if isinstance(value, dict) and isinstance(spelled, dict):
            return {name: self.build_untyped(part, spelled.get(name)) for name, part in value.items()}
        if isinstance(value, list) and isinstance(spelled, list) and len(value) == len(spelled):
            return [self.build_untyped(*pair) for pair in zip(value, spelled, strict=True)]
        return self.to_confidence(value, spelled, is_text=True)

    def to_confidence(self, value: Any, spelled: Any, *, is_text: bool) -> float | None:
        if not isinstance(spelled, SpelledValue):
            return None
        return spelled.to_confidence(is_text=is_text and isinstance(value, str) and value not in self.choices)


@lru_cache(maxsize=64)
def _find_places(schema_text: str) -> frozenset[str]:
    """The names of fields that hold a box, a point or a time."""
    meanings = find_field_meanings(json.loads(schema_text))
    return frozenset(name for name, meaning in meanings.items() if meaning in PLACES)


@lru_cache(maxsize=64)
def _find_choices(schema_text: str) -> frozenset[str]:
    """Strings that the schema lists: they are choices, not free text."""
    nodes = [node for _, node in walk_schema(json.loads(schema_text))]
    constants = [value for node in nodes for value in (*node.get("enum", ()), node.get("const"))]
    return frozenset(value for value in constants if isinstance(value, str))
