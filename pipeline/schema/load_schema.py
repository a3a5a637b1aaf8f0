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
from pipeline.schema.schema import Schema, _model

ANY = "#/$defs/AnyJson"
WORDS = {"string": "text"}
FALLBACK_PROMPT = "Look at the picture and answer with one JSON object."


def load(spec: str | None, *, base: Path) -> Schema | None:
    """The schema that a job names, relative paths from `base`; JobError says what is wrong with it."""
    if spec is None:
        return None
    if spec.endswith(".json"):
        source = _read(base / spec)
        try:
            plain = json.loads(source)
        except ValueError as error:
            raise JobError(f"{spec} is not JSON: {error}") from error
        if not isinstance(plain, dict):
            raise JobError(f"{spec} is not a JSON Schema: it must be an object")
        return _schema(spec, "", source, plain)
    path, _, attribute = spec.partition(":")
    if path.endswith(".py"):
        if not attribute:
            raise JobError(f"{spec} does not say which model: write {spec}:Model")
        source = _read(base / path)
        return _schema(path, attribute, source, _json_schema(_model(path, attribute, source), spec))
    model = registry.find(registry.SCHEMAS, spec, "the schema")
    return _schema(spec, model.__name__, "", _json_schema(model, spec))


def problems(schema: Schema) -> list[str]:
    """What the grammar cannot hold a model to, each with its place; empty for a schema that works."""
    return json_schema.problems(schema.json_schema)


def describe(schema: Schema) -> str:
    """The fields, one a line, as a prompt shows them to a model.

    total: text, the amount to pay
    """
    lines = ["Answer with JSON only. Its fields:", *_lines(schema.json_schema, schema.json_schema, 0, ())]
    if schema.example is not None:
        lines += ["Example:", json.dumps(schema.example, ensure_ascii=False, separators=(",", ":"))]
    return "\n".join(lines)


def prompt(schema: Schema) -> str:
    """What to ask where the job does not say: the schema's own question and its fields."""
    return f"{schema.default_prompt or FALLBACK_PROMPT}\n{describe(schema)}"


class _Narrow(GenerateJsonSchema):
    """pydantic's JSON Schema, with decimals as exact strings."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        places = schema.get("decimal_places")
        places = 6 if places is None else places
        whole = max(1, (schema.get("max_digits") or 18 + places) - places)
        floor = schema.get("ge", schema.get("gt"))
        return json_schema.decimal(whole=min(whole, 38 - places), places=places, signed=floor is None or floor < 0)


def _schema(name: str, attribute: str, source: str, plain: dict[str, Any]) -> Schema:
    model = _model(name, attribute, source) if attribute else None
    try:
        Draft202012Validator.check_schema(plain)
        narrowed = json_schema.canonical(plain)
        column = columns.field(narrowed)
    except SchemaError as error:
        raise JobError(f"the schema {name} is not well formed: {error.json_path}: {error.message}") from error
    except ValueError as error:
        raise JobError(f"the schema {name} is not well formed: {error}") from error
    return Schema(
        name=name,
        attribute=attribute,
        source=source,
        text=json_schema.text(narrowed),
        default_prompt=getattr(model, "default_prompt", None) or (plain.get("description") if model is None else None),
        example=getattr(model, "example", None) if model else (plain.get("examples") or [None])[0],
        field=column,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise JobError(f"the schema {path} cannot be read: {why}") from error


def _json_schema(model: type[BaseModel], spec: str) -> dict[str, Any]:
    try:
        plain = model.model_json_schema(schema_generator=_Narrow)
        dumped = model.model_json_schema(schema_generator=_Narrow, mode="serialization")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        raise JobError(f"the schema {spec} cannot be written as JSON Schema: {error.message}") from error
    read, written = _names(plain), _names(dumped)
    if read - written and written - read:
        names = ", ".join(sorted(read - written))
        raise JobError(f"the schema {spec} reads {names} and writes it under another name; give it `alias` alone")
    return plain


def _names(node: Any) -> set[str]:
    """Every field's name."""
    inner = [_names(part) for _, part in json_schema.children(node)]
    return set(node.get("properties", ())).union(*inner) if isinstance(node, dict) else set()


def _lines(node: Any, root: dict[str, Any], depth: int, above: tuple[str, ...]) -> list[str]:
    """One line for each field below a schema, indented by depth."""
    if not isinstance(node, dict) or node.get("$ref") in above:
        return []
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = json_schema.resolve(node, root)
    lines = []
    for name, part in node.get("properties", {}).items():
        whole = json_schema.resolve(part, root)
        said = f", {whole['description']}" if "description" in whole else ""
        lines.append(f"{'  ' * depth}{name}: {_kind(part, root)}{said}")
        lines += _lines(part, root, depth + 1, above)
    inside = [node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ()), *node.get("oneOf", ())]
    return lines + [line for part in inside for line in _lines(part, root, depth, above)]


def _kind(node: dict[str, Any], root: dict[str, Any], above: tuple[str, ...] = (ANY,)) -> str:
    """A schema's type in a word or two, for a prompt."""
    if node.get("$ref") in above:
        return "any"
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = json_schema.resolve(node, root)
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(
            json.dumps(value, ensure_ascii=False) for value in node.get("enum", [node.get("const")])
        )
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_kind(part, root, above) for part in node["anyOf"]))
    if "x-decimal" in node:
        return "amount as text"
    if node.get("type") == "array" and isinstance(node.get("items"), dict):
        return f"list of {_kind(node['items'], root, above)}"
    kinds = node.get("format") or node.get("type", "any")
    return " or ".join(WORDS.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
