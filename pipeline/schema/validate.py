"""Checks a parsed answer against its schema, and converts it to the Python types of its columns.

Errors (types, ranges, a validator that raises) make the answer invalid. Doubts do not: a pydantic model may have a
method `violations()` that yields sentences, and the row keeps its answer beside them. The model is a user's code, so
whatever it raises fails the answer, not the run.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.protocols import Validator
from pydantic import BaseModel, ValidationError

from pipeline.errors import AnswerError
from pipeline.schema import columns
from pipeline.schema.schema import Schema

MAX_LISTED_ERRORS = 20


def validate_answer(value: Any, schema: Schema) -> tuple[Any, tuple[str, ...]]:
    """The answer in the Python types of its columns, and the violations that its schema lists."""
    plain_answer, violations = check_answer(value, schema)
    return to_typed_answer(plain_answer, schema), violations


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
        answer = model.model_validate_json(json.dumps(value))  # strict models accept dates as text only in JSON
        list_violations = getattr(model, "violations", None)
        violations = tuple(str(line) for line in list_violations(answer)) if list_violations else ()
        return answer.model_dump(mode="json", by_alias=True), violations
    except ValidationError as error:
        raise _build_invalid_answer_error(
            [f"{_format_location(e['loc'])}{e['msg']}" for e in error.errors(include_url=False, include_context=False)]
        ) from error
    except Exception as error:  # a user's own code may raise anything
        raise AnswerError("schema_code", f"{model.__name__} raised {type(error).__name__}: {error}") from error


def _check_with_json_schema(value: Any, schema_text: str) -> Any:
    errors = sorted(
        _build_validator(schema_text).iter_errors(value), key=lambda error: list(map(str, error.absolute_path))
    )
    if errors:
        raise _build_invalid_answer_error(
            [f"{_format_location(tuple(error.absolute_path))}{error.message[:200]}" for error in errors]
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
