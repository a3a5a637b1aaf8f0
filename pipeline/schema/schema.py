"""Schema: what an answer must look like, as a record that can be sent to every worker.

It carries the source of a user's pydantic model, not the class: each process runs that source once.
"""

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


@dataclass(frozen=True, slots=True)
class Schema:
    name: str
    model_name: str  # empty for a JSON Schema
    source: str  # Python or JSON text; empty for one of `schemas/`
    text: str  # the canonical JSON Schema
    default_prompt: str | None
    example: Any = None
    answer_field: pa.Field = field(default_factory=lambda: pa.field("answer", pa.string()), compare=False)

    @property
    def json_schema(self) -> dict[str, Any]:
        return _parse_json(self.text)

    @property
    def model(self) -> type[BaseModel] | None:
        return load_model(self.name, self.model_name, self.source) if self.model_name else None


@functools.lru_cache(maxsize=64)
def _parse_json(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@functools.lru_cache(maxsize=64)
def load_model(name: str, model_name: str, source: str) -> type[BaseModel]:
    """The model class, from the installed `schemas/` or by running a user's source in a new module."""
    if not source:
        return registry.load_registered(registry.SCHEMAS, name, "the schema")  # type: ignore[no-any-return]
    module = ModuleType(f"schema_{hashlib.sha256(source.encode()).hexdigest()[:12]}")
    sys.modules[module.__name__] = module  # pydantic resolves annotations there
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except Exception as error:  # a user's own code may raise anything
        raise JobError(f"the schema {name} fails to run: {type(error).__name__}: {error}") from error
    model = getattr(module, model_name, None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        model_names = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
        ]
        raise JobError(f"{name} has no pydantic model {model_name!r}; it has: {', '.join(model_names) or 'none'}")
    return model
