"""Loads the schema that a job names, and describes its fields for a prompt.

A job names one of `schemas/`, a pydantic model as `path.py:Model`, or a JSON Schema in a `.json` file. A Schema
carries its source text instead of its class, so that machines without the file can use it; the file may therefore
import only packages that are installed there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from pipeline import registry
from pipeline.errors import JobError
from pipeline.job.answer_section import AnswerSection
from pipeline.schema import columns, json_schema
from pipeline.schema.choice_schema import build_choice_schema, build_rerank_schema
from pipeline.schema.json_schema import SchemaCursor, SchemaNode, enter_schema, walk_references
from pipeline.schema.schema import Schema, load_model

ANY_JSON_REF = "#/$defs/AnyJson"
TYPE_WORDS = {"string": "text"}
FALLBACK_PROMPT = "Look at the picture and answer with one JSON object."


def load_answer_schema(answer: AnswerSection, *, base_folder: Path) -> Schema | None:
    """What the answers of a job look like; None where they are text."""
    if answer.rerank:
        return build_rerank_schema()
    return build_choice_schema(answer) if answer.choices else load_schema(answer.schema_, base_folder=base_folder)


def load_schema(spec: str | None, *, base_folder: Path) -> Schema | None:
    """Load the schema that a job names; JobError says what is wrong with it."""
    return None if spec is None else _build_schema(*_read_schema(spec, base_folder))


def load_annotated_schema(spec: str, *, base_folder: Path) -> SchemaNode:
    """The JSON Schema as its author wrote it, with the keys that are no part of the question."""
    return _read_schema(spec, base_folder)[3]


def _read_schema(spec: str, base_folder: Path) -> tuple[str, str, str, SchemaNode]:
    """The name, the name of the model, the source and the JSON Schema."""
    if spec.endswith(".json"):
        source = _read_text(base_folder / spec)
        try:
            schema_dict = json.loads(source)
        except ValueError as error:
            raise JobError(f"{spec} is not JSON: {error}") from error
        if not isinstance(schema_dict, dict):
            raise JobError(f"{spec} is not a JSON Schema: it must be an object")
        return spec, "", source, schema_dict
    path, _, model_name = spec.partition(":")
    if path.endswith(".py"):
        if not model_name:
            raise JobError(f"{spec} does not name a model: write {spec}:Model")
        source = _read_text(base_folder / path)
        return path, model_name, source, _to_json_schema(load_model(path, model_name, source), spec)
    model = registry.load_registered(registry.SCHEMAS, spec, "the schema")
    return spec, model.__name__, "", _to_json_schema(model, spec)


def find_problems(schema: Schema) -> list[str]:
    """The parts that the grammar cannot enforce, each with its path; empty for a schema that works."""
    return json_schema.find_grammar_problems(schema.json_schema)


def describe_fields(schema: Schema) -> str:
    """Describe the fields for a prompt, one on a line.

    total: text, the amount to pay
    """
    field_lines = walk_references(schema.json_schema, lambda root: _format_field_lines(root, 0))
    lines = ["Answer with JSON only. Its fields:", *field_lines]
    if schema.example is not None:
        lines += ["Example:", json.dumps(schema.example, ensure_ascii=False, separators=(",", ":"))]
    return "\n".join(lines)


def build_default_prompt(schema: Schema) -> str:
    """The prompt of a job that has none: the schema's own prompt and its fields."""
    return f"{schema.default_prompt or FALLBACK_PROMPT}\n{describe_fields(schema)}"


class _DecimalSchemaGenerator(GenerateJsonSchema):
    """Generates pydantic's JSON Schema with decimals as exact strings."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        places = schema.get("decimal_places")
        places = 6 if places is None else places
        integer_digits = max(1, (schema.get("max_digits") or 18 + places) - places)
        minimum = schema.get("ge", schema.get("gt"))
        return json_schema.build_decimal_schema(
            integer_digits=min(integer_digits, 38 - places),
            decimal_places=places,
            signed=minimum is None or minimum < 0,
        )


def _build_schema(name: str, model_name: str, source: str, schema_dict: dict[str, Any]) -> Schema:
    model = load_model(name, model_name, source) if model_name else None
    try:
        Draft202012Validator.check_schema(schema_dict)
        canonical_schema = json_schema.canonicalize_schema(schema_dict)
        answer_field = columns.to_arrow_field(canonical_schema)
    except SchemaError as error:
        raise JobError(f"the schema {name} is not well formed: {error.json_path}: {error.message}") from error
    except ValueError as error:
        raise JobError(f"the schema {name} is not well formed: {error}") from error
    return Schema(
        name=name,
        model_name=model_name,
        source=source,
        text=json_schema.format_schema(canonical_schema),
        default_prompt=getattr(model, "default_prompt", None) if model else schema_dict.get("description"),
        example=getattr(model, "example", None) if model else (schema_dict.get("examples") or [None])[0],
        answer_field=answer_field,
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"the schema {path} cannot be read: {reason}") from error


def _to_json_schema(model: type[BaseModel], spec: str) -> dict[str, Any]:
    try:
        schema_to_read = model.model_json_schema(schema_generator=_DecimalSchemaGenerator)
        schema_to_write = model.model_json_schema(schema_generator=_DecimalSchemaGenerator, mode="serialization")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        raise JobError(f"the schema {spec} cannot be written as JSON Schema: {error.message}") from error
    names_to_read, names_to_write = _list_field_names(schema_to_read), _list_field_names(schema_to_write)
    if names_to_read - names_to_write and names_to_write - names_to_read:
        names = ", ".join(sorted(names_to_read - names_to_write))
        raise JobError(f"the schema {spec} reads {names} but writes it under another name; use only `alias`")
    return schema_to_read


def _list_field_names(schema: SchemaNode) -> set[str]:
    return {name for _, node in json_schema.walk_schema(schema) for name in node.get("properties", ())}


def _format_field_lines(schema: SchemaCursor | None, depth: int) -> list[str]:
    """One line for each field below a schema, indented by depth."""
    if schema is None:
        return []
    lines = []
    for name, part in schema.node.get("properties", {}).items():
        type_words = _describe_type(enter_schema(part, schema.root, (ANY_JSON_REF,), schema.limit))
        resolved_part = json_schema.resolve_ref(part, schema.root)
        description = f", {resolved_part['description']}" if "description" in resolved_part else ""
        lines.append(f"{'  ' * depth}{name}: {type_words}{description}")
        lines += _format_field_lines(schema.enter(part), depth + 1)
    nested = [schema.items, schema.enter(schema.node.get("additionalProperties")), *schema.alternatives]
    return lines + [line for part in nested for line in _format_field_lines(part, depth)]


def _describe_type(schema: SchemaCursor | None) -> str:
    """A schema's type in a word or two."""
    if schema is None:
        return "any"
    node = schema.node
    if schema.constants is not None:
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in schema.constants)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_describe_type(schema.enter(part)) for part in node["anyOf"]))
    if "x-decimal" in node:
        return "amount as text"
    if node.get("type") == "array" and isinstance(node.get("items"), dict):
        return f"list of {_describe_type(schema.items)}"
    type_names = [node["format"]] if node.get("format") else schema.types or ["any"]
    return " or ".join(TYPE_WORDS.get(name, name) for name in type_names)
