"""TODO."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from pipeline import registry
from pipeline.errors import JobError
from pipeline.schema import validate


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that can be pickled: `source` is its Python or JSON text, empty for one of `schemas/`."""

    name: str
    model_name: str  # the model's name; empty for JSON Schema
    source: str
    text: str  # canonical JSON Schema
    default_prompt: str | None
    example: Any = None
    answer_field: pa.Field = field(default_factory=lambda: pa.field("answer", pa.string()), compare=False)

    @property
    def json_schema(self) -> dict[str, Any]:
        return _parse_json(self.text)

    @property
    def model(self) -> type[BaseModel] | None:
        return _load_model(self.name, self.model_name, self.source) if self.model_name else None

    def to_typed_answer(self, value: Any) -> Any:
        """The value in the Python types of its columns; AnswerError of kind `invalid_answer` lists what is wrong."""
        return validate.validate_answer(value, self)[0]


@functools.lru_cache(maxsize=64)
def _parse_json(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@functools.lru_cache(maxsize=64)
def _load_model(name: str, model_name: str, source: str) -> type[BaseModel]:
    """The class, from the installed `schemas/` or from a user's source, run once in a module of its own."""
    if not source:
        return registry.load_registered(registry.SCHEMAS, name, "the schema")  # type: ignore[no-any-return]
    module = ModuleType(f"schema_{hashlib.sha256(source.encode()).hexdigest()[:12]}")
    sys.modules[module.__name__] = module  # where pydantic looks up what annotations name
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except Exception as error:  # a user's own code may raise anything
        raise JobError(f"the schema {name} cannot be run: {type(error).__name__}: {error}") from error
    model = getattr(module, model_name, None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        there = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
        ]
        raise JobError(f"{name} has no pydantic model {model_name!r}; it has: {', '.join(there) or 'none'}")
    return model
