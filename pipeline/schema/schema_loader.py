"""What a job names as its schema -> a Schema: the text that guides, the columns, the check.

A name from `schemas/`, a file `path.py:Model` with a pydantic model, or a `.json` JSON Schema. A Schema carries its
source, not its class, so it can be sent to a machine that does not have the file; the file must therefore stand
alone: what it imports must be installed there.
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
from pipeline.schema import columns, json_schema
from pipeline.schema.schema import Schema, _load_model

ANY_JSON_REF = "#/$defs/AnyJson"
TYPE_WORDS = {"string": "text"}
FALLBACK_PROMPT = "Look at the picture and answer with one JSON object."


def load_schema(spec: str | None, *, base_folder: Path) -> Schema | None:
    """The schema that a job names, relative paths from `base`; JobError says what is wrong with it."""
    if spec is None:
        return None
    if spec.endswith(".json"):
        source = _read_text(base_folder / spec)
        try:
            plain = json.loads(source)
        except ValueError as error:
            raise JobError(f"{spec} is not JSON: {error}") from error
        if not isinstance(plain, dict):
            raise JobError(f"{spec} is not a JSON Schema: it must be an object")
        return _build_schema(spec, "", source, plain)
    path, _, attribute = spec.partition(":")
    if path.endswith(".py"):
        if not attribute:
            raise JobError(f"{spec} does not say which model: write {spec}:Model")
        source = _read_text(base_folder / path)
        return _build_schema(path, attribute, source, _to_json_schema(_load_model(path, attribute, source), spec))
    model = registry.load_registered(registry.SCHEMAS, spec, "the schema")
    return _build_schema(spec, model.__name__, "", _to_json_schema(model, spec))


def find_problems(schema: Schema) -> list[str]:
    """What the grammar cannot hold a model to, each with its place; empty for a schema that works."""
    return json_schema.find_grammar_problems(schema.json_schema)


def describe_fields(schema: Schema) -> str:
    """The fields, one a line, as a prompt shows them to a model.

    total: text, the amount to pay
    """
    lines = ["Answer with JSON only. Its fields:", *_format_field_lines(schema.json_schema, schema.json_schema, 0, ())]
    if schema.example is not None:
        lines += ["Example:", json.dumps(schema.example, ensure_ascii=False, separators=(",", ":"))]
    return "\n".join(lines)


def build_default_prompt(schema: Schema) -> str:
    """What to ask where the job does not say: the schema's own question and its fields."""
    return f"{schema.default_prompt or FALLBACK_PROMPT}\n{describe_fields(schema)}"


class _DecimalSchemaGenerator(GenerateJsonSchema):
    """pydantic's JSON Schema, with decimals as exact strings."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        places = schema.get("decimal_places")
        places = 6 if places is None else places
        whole = max(1, (schema.get("max_digits") or 18 + places) - places)
        floor = schema.get("ge", schema.get("gt"))
        return json_schema.build_decimal_schema(
            integer_digits=min(whole, 38 - places), decimal_places=places, signed=floor is None or floor < 0
        )


def _build_schema(name: str, model_name: str, source: str, schema_dict: dict[str, Any]) -> Schema:
    model = _load_model(name, model_name, source) if model_name else None
    try:
        Draft202012Validator.check_schema(schema_dict)
        narrowed = json_schema.canonicalize_schema(schema_dict)
        column = columns.to_arrow_field(narrowed)
    except SchemaError as error:
        raise JobError(f"the schema {name} is not well formed: {error.json_path}: {error.message}") from error
    except ValueError as error:
        raise JobError(f"the schema {name} is not well formed: {error}") from error
    return Schema(
        name=name,
        model_name=model_name,
        source=source,
        text=json_schema.format_schema(narrowed),
        default_prompt=getattr(model, "default_prompt", None)
        or (schema_dict.get("description") if model is None else None),
        example=getattr(model, "example", None) if model else (schema_dict.get("examples") or [None])[0],
        answer_field=column,
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise JobError(f"the schema {path} cannot be read: {why}") from error


def _to_json_schema(model: type[BaseModel], spec: str) -> dict[str, Any]:
    try:
        plain = model.model_json_schema(schema_generator=_DecimalSchemaGenerator)
        dumped = model.model_json_schema(schema_generator=_DecimalSchemaGenerator, mode="serialization")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        raise JobError(f"the schema {spec} cannot be written as JSON Schema: {error.message}") from error
    read, written = _list_field_names(plain), _list_field_names(dumped)
    if read - written and written - read:
        names = ", ".join(sorted(read - written))
        raise JobError(f"the schema {spec} reads {names} and writes it under another name; give it `alias` alone")
    return plain


def _list_field_names(node: Any) -> set[str]:
    """Every field's name."""
    inner = [_list_field_names(part) for _, part in json_schema.iterate_subschemas(node)]
    return set(node.get("properties", ())).union(*inner) if isinstance(node, dict) else set()


def _format_field_lines(node: Any, root: dict[str, Any], depth: int, parent_refs: tuple[str, ...]) -> list[str]:
    """One line for each field below a schema, indented by depth."""
    if not isinstance(node, dict) or node.get("$ref") in parent_refs:
        return []
    parent_refs = (*parent_refs, node["$ref"]) if "$ref" in node else parent_refs
    node = json_schema.resolve_ref(node, root)
    lines = []
    for name, part in node.get("properties", {}).items():
        whole = json_schema.resolve_ref(part, root)
        said = f", {whole['description']}" if "description" in whole else ""
        lines.append(f"{'  ' * depth}{name}: {_describe_type(part, root)}{said}")
        lines += _format_field_lines(part, root, depth + 1, parent_refs)
    inside = [node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ()), *node.get("oneOf", ())]
    return lines + [line for part in inside for line in _format_field_lines(part, root, depth, parent_refs)]


def _describe_type(node: dict[str, Any], root: dict[str, Any], parent_refs: tuple[str, ...] = (ANY_JSON_REF,)) -> str:
    """A schema's type in a word or two, for a prompt."""
    if node.get("$ref") in parent_refs:
        return "any"
    parent_refs = (*parent_refs, node["$ref"]) if "$ref" in node else parent_refs
    node = json_schema.resolve_ref(node, root)
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(
            json.dumps(value, ensure_ascii=False) for value in node.get("enum", [node.get("const")])
        )
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_describe_type(part, root, parent_refs) for part in node["anyOf"]))
    if "x-decimal" in node:
        return "amount as text"
    if node.get("type") == "array" and isinstance(node.get("items"), dict):
        return f"list of {_describe_type(node['items'], root, parent_refs)}"
    kinds = node.get("format") or node.get("type", "any")
    return " or ".join(TYPE_WORDS.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
