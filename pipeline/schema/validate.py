"""A parsed answer -> its exact values and what is doubtful about it, or AnswerError with all that is wrong.

Two strengths. What a schema forbids (types, ranges, a validator that raises) makes the answer invalid. What it only
doubts, it lists: a pydantic model may have a method `violations()` that yields sentences, and a row keeps its answer
beside them. The model is a user's own code, so whatever it raises is an answer that failed, not a run that did.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.protocols import Validator
from pydantic import BaseModel, ValidationError

from pipeline.errors import AnswerError
from pipeline.schema import columns

if TYPE_CHECKING:
    from pipeline.schema.schema import Schema

MAX_LISTED_ERRORS = 20  # complaints about one answer that are written out


def validate_answer(value: Any, schema: Schema) -> tuple[Any, tuple[str, ...]]:
    """The answer in its columns' Python types, and the violations that its schema lists."""
    plain, violations = check_answer(value, schema)
    return to_typed_answer(plain, schema), violations


def check_answer(value: Any, schema: Schema) -> tuple[Any, tuple[str, ...]]:
    """The answer as plain JSON values, and the violations."""
    return _check_with_model(value, schema.model) if schema.model else (_check_with_json_schema(value, schema.text), ())


def to_typed_answer(plain_answer: Any, schema: Schema) -> Any:
    try:
        return columns.to_column_value(plain_answer, schema.answer_field)
    except (ValueError, ArithmeticError, TypeError, AttributeError, KeyError) as error:
        raise AnswerError("invalid_answer", f"the answer does not fit its columns: {error}") from error


def _check_with_model(value: Any, model: type[BaseModel]) -> tuple[Any, tuple[str, ...]]:
    try:
        answer = model.model_validate_json(json.dumps(value))  # as JSON, so that strict models take its dates as text
        doubts = getattr(model, "violations", None)
        violations = tuple(str(line) for line in doubts(answer)) if doubts else ()
        return answer.model_dump(mode="json", by_alias=True), violations
    except ValidationError as error:
        raise _build_invalid_answer_error(
            [f"{_format_location(e['loc'])}{e['msg']}" for e in error.errors(include_url=False, include_context=False)]
        ) from error
    except Exception as error:  # a user's own code may raise anything
        raise AnswerError("schema_code", f"{model.__name__} raised {type(error).__name__}: {error}") from error


def _check_with_json_schema(value: Any, schema_text: str) -> Any:
    found = sorted(
        _build_validator(schema_text).iter_errors(value), key=lambda error: list(map(str, error.absolute_path))
    )
    if found:
        raise _build_invalid_answer_error(
            [f"{_format_location(tuple(error.absolute_path))}{error.message[:200]}" for error in found]
        )
    return value


def _build_invalid_answer_error(messages: list[str]) -> AnswerError:
    more = f"; and {len(messages) - MAX_LISTED_ERRORS} more" if len(messages) > MAX_LISTED_ERRORS else ""
    return AnswerError("invalid_answer", "; ".join(messages[:MAX_LISTED_ERRORS]) + more)


def _format_location(path: tuple[int | str, ...]) -> str:
    return ".".join(map(str, path)) + ": " if path else ""


@functools.lru_cache(maxsize=64)
def _build_validator(schema_text: str) -> Validator:
    return Draft202012Validator(json.loads(schema_text), format_checker=FormatChecker())
