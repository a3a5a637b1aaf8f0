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

MOST = 20  # complaints about one answer that are written out


def validate(value: Any, schema: Schema) -> tuple[Any, tuple[str, ...]]:
    """The answer in its columns' Python types, and the violations that its schema lists."""
    plain, violations = checked(value, schema)
    return typed(plain, schema), violations


def checked(value: Any, schema: Schema) -> tuple[Any, tuple[str, ...]]:
    """The answer as plain JSON values, and the violations."""
    return _by_model(value, schema.model) if schema.model else (_by_json_schema(value, schema.text), ())


def typed(plain: Any, schema: Schema) -> Any:
    try:
        return columns.exact(plain, schema.field)
    except (ValueError, ArithmeticError, TypeError, AttributeError, KeyError) as error:
        raise AnswerError("invalid_answer", f"the answer does not fit its columns: {error}") from error


def _by_model(value: Any, model: type[BaseModel]) -> tuple[Any, tuple[str, ...]]:
    try:
        answer = model.model_validate_json(json.dumps(value))  # as JSON, so that strict models take its dates as text
        doubts = getattr(model, "violations", None)
        violations = tuple(str(line) for line in doubts(answer)) if doubts else ()
        return answer.model_dump(mode="json", by_alias=True), violations
    except ValidationError as error:
        raise _invalid(
            [f"{_place(e['loc'])}{e['msg']}" for e in error.errors(include_url=False, include_context=False)]
        ) from error
    except Exception as error:  # a user's own code may raise anything
        raise AnswerError("schema_code", f"{model.__name__} raised {type(error).__name__}: {error}") from error


def _by_json_schema(value: Any, text: str) -> Any:
    found = sorted(_validator(text).iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    if found:
        raise _invalid([f"{_place(tuple(error.absolute_path))}{error.message[:200]}" for error in found])
    return value


def _invalid(lines: list[str]) -> AnswerError:
    more = f"; and {len(lines) - MOST} more" if len(lines) > MOST else ""
    return AnswerError("invalid_answer", "; ".join(lines[:MOST]) + more)


def _place(steps: tuple[int | str, ...]) -> str:
    return ".".join(map(str, steps)) + ": " if steps else ""


@functools.lru_cache(maxsize=64)
def _validator(text: str) -> Validator:
    return Draft202012Validator(json.loads(text), format_checker=FormatChecker())
