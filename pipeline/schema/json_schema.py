"""A JSON Schema, as pydantic or a person wrote it -> the one text that guides, validates and types.

Whatever fits the result can be stored: numbers have bounds, dates exist, objects are closed unless the
author opened them, `{}` is any JSON made of such parts. What cannot be held by the grammar is not dropped
in silence; `problems` names it, with its place. The cost: integers beyond 15 digits must be strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

SchemaNode = dict[str, Any]
MAX_INTEGER = 10**15 - 1  # fifteen digits: exact in an int64, in a double, and in other people's JSON readers

SINGLE_SCHEMA_KEYS = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
SCHEMA_LIST_KEYS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMA_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
ANNOTATION_KEYS = (
    "title",
    "default",
    "examples",
    "discriminator",
    "$schema",
    "$id",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
)
TYPE_KEYS = {"type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if"}
IMPLIED_TYPES = {"properties": "object", "items": "array", "prefixItems": "array"}
GRAMMAR_FORMATS = (
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
)  # known to the grammar

DATE_REGEX = (
    r"(([12][0-9]([02468][48]|[2468]0|[13579][26])|(1[26]|2[048])00)-02-29"
    r"|[12][0-9]{3}-(02-(0[1-9]|1[0-9]|2[0-8])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])))"
)
TIME_REGEX = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
FORMAT_PATTERNS = {
    "date": f"^{DATE_REGEX}$",
    "time": f"^{TIME_REGEX}$",
    "date-time": f"^{DATE_REGEX}T{TIME_REGEX}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
}

ANY_JSON: SchemaNode = {
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "number", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER},
        {"type": "array", "items": {"$ref": "#/$defs/AnyJson"}},
        {"type": "object", "additionalProperties": {"$ref": "#/$defs/AnyJson"}},
    ]
}


def canonicalize_schema(schema: SchemaNode) -> SchemaNode:
    """The same schema, narrowed to what can be stored. Doing it twice changes nothing."""
    result: SchemaNode = _narrow_schema(schema)
    if '"#/$defs/AnyJson"' in json.dumps(result):
        result.setdefault("$defs", {})["AnyJson"] = ANY_JSON
    return result


def format_schema(schema: SchemaNode) -> str:
    """One spelling for one schema; the order of properties is the order of the answer."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def iterate_subschemas(node: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its place."""
    if not isinstance(node, dict):
        return
    for key in SINGLE_SCHEMA_KEYS:
        if isinstance(node.get(key), dict):
            yield f"{path}.{key}", node[key]
    for key in SCHEMA_LIST_KEYS:
        for index, part in enumerate(node.get(key, ())):
            yield f"{path}.{key}[{index}]", part
    for key in SCHEMA_MAP_KEYS:
        for name, part in node.get(key, {}).items():
            yield f"{path}.{name}" if key == "properties" else f"{path}.{key}.{name}", part


def resolve_ref(node: SchemaNode, root: SchemaNode) -> SchemaNode:
    """What a `$ref` stands for, with what is said beside it."""
    seen = set()
    while "$ref" in node:
        reference, target = node["$ref"], root
        steps = [step.replace("~1", "/").replace("~0", "~") for step in reference.removeprefix("#").split("/") if step]
        for step in steps:
            target = target.get(step, {}) if isinstance(target, dict) else {}
        if reference in seen or not reference.startswith("#") or (steps and not target):
            raise ValueError(f"$ref {reference} leads nowhere: it must point to a schema in the same file")
        seen.add(reference)
        node = target | {key: value for key, value in node.items() if key != "$ref"}
    return node


def find_grammar_problems(schema: SchemaNode) -> list[str]:
    """What the grammar cannot hold a model to, each with its place; empty for a schema that works."""
    from llguidance import LLMatcher

    def refusal(node: SchemaNode) -> str:
        grammar = LLMatcher.grammar_from_json_schema(format_schema(node), overrides={"whitespace_flexible": False})
        return str(LLMatcher.validate_grammar(grammar))

    def walk(path: str, node: SchemaNode) -> Iterator[str]:
        found = [line for place, part in iterate_subschemas(node, path) for line in walk(place, part)]
        if len(node.get("allOf", ())) > 1:
            found.append(f"{path}: allOf of several schemas: write one object with all properties")
        if "minProperties" in node:
            found.append(f"{path}: minProperties: a key may come twice; name the keys that are required")
        complaint = refusal(node | {key: schema[key] for key in ("$defs", "definitions") if key in schema})
        yield from found or ([f"{path}: {complaint.splitlines()[-1]}"] if complaint else [])

    if (
        not refusal(schema)
        and '"allOf"' not in format_schema(schema)
        and '"minProperties"' not in format_schema(schema)
    ):
        return []
    return sorted(set(walk("$", schema)))


def _narrow_schema(node: Any) -> Any:
    node = {} if node is True else node
    if not isinstance(node, dict):
        return node
    node = _map_subschemas(
        {key: value for key, value in node.items() if key not in ANNOTATION_KEYS or key == "discriminator"},
        _narrow_schema,
    )
    if not node.keys() - {"description"}:
        return {"$ref": "#/$defs/AnyJson"} | node
    if node.pop("discriminator", None) and "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")  # the tag keeps the branches apart
    if len(node.get("allOf", ())) == 1:
        node = node.pop("allOf")[0] | node
    if not node.keys() & TYPE_KEYS:  # who lists the fields of an object means one
        meant = next((kind for key, kind in IMPLIED_TYPES.items() if key in node), None)
        node = {"type": meant} | node if meant else node
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for kind, rule in (
        ("string", _narrow_string),
        ("integer", _narrow_number),
        ("number", _narrow_number),
        ("array", _narrow_array),
        ("object", _narrow_object),
    ):
        if kind in kinds and not {"enum", "const"} & set(node):
            node = rule(node)
    return node


def _map_subschemas(node: SchemaNode, transform: Callable[[Any], Any]) -> SchemaNode:
    """A schema with each schema directly inside it changed."""
    result = dict(node)
    for key in SINGLE_SCHEMA_KEYS:
        if key in node and not isinstance(node[key], bool):
            result[key] = transform(node[key])
    for key in SCHEMA_LIST_KEYS:
        if key in node:
            result[key] = [transform(part) for part in node[key]]
    for key in SCHEMA_MAP_KEYS:
        if key in node:
            result[key] = {name: transform(part) for name, part in node[key].items() if part is not False}
    return result


def _narrow_string(node: SchemaNode) -> SchemaNode:
    if node.get("format") == "decimal":
        return {key: value for key, value in node.items() if key != "format"} | build_decimal_schema()
    if node.get("format") in FORMAT_PATTERNS and "pattern" not in node:
        node = node | {"pattern": FORMAT_PATTERNS[node["format"]]}
    return (
        node
        if node.get("format", "date") in GRAMMAR_FORMATS
        else {key: value for key, value in node.items() if key != "format"}
    )


def build_decimal_schema(*, integer_digits: int = 18, decimal_places: int = 6, signed: bool = True) -> SchemaNode:
    """An exact number, written as a string so that it never passes through a float."""
    fraction = rf"(\.[0-9]{{1,{decimal_places}}})?" if decimal_places else ""
    pattern = rf"^{'-?' if signed else ''}(0|[1-9][0-9]{{0,{integer_digits - 1}}}){fraction}$"
    return {"type": "string", "pattern": pattern, "x-decimal": [integer_digits + decimal_places, decimal_places]}


def _narrow_number(node: SchemaNode) -> SchemaNode:
    below = {} if {"minimum", "exclusiveMinimum"} & set(node) else {"minimum": -MAX_INTEGER}
    above = {} if {"maximum", "exclusiveMaximum"} & set(node) else {"maximum": MAX_INTEGER}
    return node | below | above


def _narrow_array(node: SchemaNode) -> SchemaNode:
    if "prefixItems" in node:
        return {"items": False, "minItems": len(node["prefixItems"])} | node
    return {"items": {"$ref": "#/$defs/AnyJson"}} | node


def _narrow_object(node: SchemaNode) -> SchemaNode:
    if "properties" in node or "patternProperties" in node:
        return {"additionalProperties": False} | node
    return {"additionalProperties": {"$ref": "#/$defs/AnyJson"}} | node
