"""Reads an answer in JSON: it is parsed, checked, typed and mapped to the original media.

An AnswerError says why there is no answer, and keeps the model's text. If repair or geometry changed the answer, `raw`
holds the model's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import AnswerError
from pipeline.json_values import parse_answer
from pipeline.output.answer.base import AnswerFields
from pipeline.output.answer.confidence import compute_confidence
from pipeline.output.answer.geometry import map_to_source
from pipeline.schema import validate
from pipeline.schema.schema import Schema
from pipeline.types import CoordinateSystem, Reply, Request, TimeOrigin


def read_json_answer(
    request: Request,
    reply: Reply,
    *,
    schema: Schema,
    coordinate_system: CoordinateSystem | None,
    time_origin: TimeOrigin = "clip",
) -> AnswerFields:
    dropped: list[Any] = []
    try:
        parsed, was_repaired = parse_answer(reply.text)
        value, was_wrapped = _wrap_bare_list(parsed, schema.json_schema)
        checked, violations = validate.check_answer(value, schema)
        mapped, flags = map_to_source(
            checked,
            schema.json_schema,
            coordinate_system=coordinate_system,
            clips=request.row_clips,
            time_origin=time_origin,
            dropped=dropped,
        )
        if mapped is None and checked is not None:
            raise AnswerError("no_place", "the answer has no area in the picture, or speaks of one that was not shown")
        typed = validate.to_typed_answer(mapped, schema)
    except RecursionError as error:
        raise AnswerError("invalid_answer", "the answer is nested too deeply", text=reply.text) from error
    except AnswerError as error:
        if error.kind == "not_json" and reply.finish == "length":
            message = f"the budget of {request.sampling.max_new_tokens} tokens ended before the answer did"
            raise AnswerError("cut_off", message, text=reply.text) from error
        raise AnswerError(error.kind, error.message, text=reply.text) from error
    if was_repaired or was_wrapped:
        flags = ("repaired", *flags)
    is_changed = flags or mapped != checked
    confidence = None
    if reply.token_logprobs:
        confidence = compute_confidence(
            value, checked, text=reply.text, tokens=reply.token_logprobs, schema=schema, dropped=dropped
        )
    raw = json.dumps(parsed, ensure_ascii=False, separators=(",", ":")) if is_changed else None
    return AnswerFields(reply.text, typed, confidence, raw=raw, flags=flags, violations=violations)


def _wrap_bare_list(value: Any, schema: Mapping[str, Any]) -> tuple[Any, bool]:
    """Wrap a bare list if the schema is an object with one field: Qwen often answers like that."""
    properties = schema.get("properties", {})
    if isinstance(value, list) and len(properties) == 1:
        return {next(iter(properties)): value}, True
    return value, False
