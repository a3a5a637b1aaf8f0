"""A JSON Schema, as pydantic or a person wrote it -> the one text that guides, validates and types.

Whatever fits the result can be stored: numbers have bounds, dates exist, objects are closed unless the
author opened them, `{}` is any JSON made of such parts. What cannot be held by the grammar is not dropped
in silence; `problems` names it, with its place. The cost: integers beyond 15 digits must be strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Node = dict[str, Any]
LARGEST = 10**15 - 1  # fifteen digits: exact in an int64, in a double, and in other people's JSON readers

ONE = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
NOTES = (
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
SAYS_TYPE = {"type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if"}
MEANT = {"properties": "object", "items": "array", "prefixItems": "array"}
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")  # known to the grammar

DAY = (
    r"(([12][0-9]([02468][48]|[2468]0|[13579][26])|(1[26]|2[048])00)-02-29"
    r"|[12][0-9]{3}-(02-(0[1-9]|1[0-9]|2[0-8])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])))"
)
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
PATTERNS = {
    "date": f"^{DAY}$",
    "time": f"^{TIME}$",
    "date-time": f"^{DAY}T{TIME}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
}

ANY: Node = {
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
        {"type": "array", "items": {"$ref": "#/$defs/AnyJson"}},
        {"type": "object", "additionalProperties": {"$ref": "#/$defs/AnyJson"}},
    ]
}


def canonical(schema: Node) -> Node:
    """The same schema, narrowed to what can be stored. Doing it twice changes nothing."""
    result: Node = _narrow(schema)
    if '"#/$defs/AnyJson"' in json.dumps(result):
        result.setdefault("$defs", {})["AnyJson"] = ANY
    return result


def text(schema: Node) -> str:
    """One spelling for one schema; the order of properties is the order of the answer."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def children(node: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its place."""
    if not isinstance(node, dict):
        return
    for key in ONE:
        if isinstance(node.get(key), dict):
            yield f"{path}.{key}", node[key]
    for key in MANY:
        for index, part in enumerate(node.get(key, ())):
            yield f"{path}.{key}[{index}]", part
    for key in NAMED:
        for name, part in node.get(key, {}).items():
            yield f"{path}.{name}" if key == "properties" else f"{path}.{key}.{name}", part


def resolve(node: Node, root: Node) -> Node:
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


def problems(schema: Node) -> list[str]:
    """What the grammar cannot hold a model to, each with its place; empty for a schema that works."""
    from llguidance import LLMatcher

    def refusal(node: Node) -> str:
        grammar = LLMatcher.grammar_from_json_schema(text(node), overrides={"whitespace_flexible": False})
        return str(LLMatcher.validate_grammar(grammar))

    def walk(path: str, node: Node) -> Iterator[str]:
        found = [line for place, part in children(node, path) for line in walk(place, part)]
        if len(node.get("allOf", ())) > 1:
            found.append(f"{path}: allOf of several schemas: write one object with all properties")
        if "minProperties" in node:
            found.append(f"{path}: minProperties: a key may come twice; name the keys that are required")
        complaint = refusal(node | {key: schema[key] for key in ("$defs", "definitions") if key in schema})
        yield from found or ([f"{path}: {complaint.splitlines()[-1]}"] if complaint else [])

    if not refusal(schema) and '"allOf"' not in text(schema) and '"minProperties"' not in text(schema):
        return []
    return sorted(set(walk("$", schema)))


def _narrow(node: Any) -> Any:
    node = {} if node is True else node
    if not isinstance(node, dict):
        return node
    node = _inside({key: value for key, value in node.items() if key not in NOTES or key == "discriminator"}, _narrow)
    if not node.keys() - {"description"}:
        return {"$ref": "#/$defs/AnyJson"} | node
    if node.pop("discriminator", None) and "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")  # the tag keeps the branches apart
    if len(node.get("allOf", ())) == 1:
        node = node.pop("allOf")[0] | node
    if not node.keys() & SAYS_TYPE:  # who lists the fields of an object means one
        meant = next((kind for key, kind in MEANT.items() if key in node), None)
        node = {"type": meant} | node if meant else node
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for kind, rule in (
        ("string", _string),
        ("integer", _number),
        ("number", _number),
        ("array", _array),
        ("object", _object),
    ):
        if kind in kinds and not {"enum", "const"} & set(node):
            node = rule(node)
    return node


def _inside(node: Node, change: Callable[[Any], Any]) -> Node:
    """A schema with each schema directly inside it changed."""
    result = dict(node)
    for key in ONE:
        if key in node and not isinstance(node[key], bool):
            result[key] = change(node[key])
    for key in MANY:
        if key in node:
            result[key] = [change(part) for part in node[key]]
    for key in NAMED:
        if key in node:
            result[key] = {name: change(part) for name, part in node[key].items() if part is not False}
    return result


def _string(node: Node) -> Node:
    if node.get("format") == "decimal":
        return {key: value for key, value in node.items() if key != "format"} | decimal()
    if node.get("format") in PATTERNS and "pattern" not in node:
        node = node | {"pattern": PATTERNS[node["format"]]}
    return (
        node
        if node.get("format", "date") in FORMATS
        else {key: value for key, value in node.items() if key != "format"}
    )


def decimal(*, whole: int = 18, places: int = 6, signed: bool = True) -> Node:
    """An exact number, written as a string so that it never passes through a float."""
    fraction = rf"(\.[0-9]{{1,{places}}})?" if places else ""
    pattern = rf"^{'-?' if signed else ''}(0|[1-9][0-9]{{0,{whole - 1}}}){fraction}$"
    return {"type": "string", "pattern": pattern, "x-decimal": [whole + places, places]}


def _number(node: Node) -> Node:
    below = {} if {"minimum", "exclusiveMinimum"} & set(node) else {"minimum": -LARGEST}
    above = {} if {"maximum", "exclusiveMaximum"} & set(node) else {"maximum": LARGEST}
    return node | below | above


def _array(node: Node) -> Node:
    if "prefixItems" in node:
        return {"items": False, "minItems": len(node["prefixItems"])} | node
    return {"items": {"$ref": "#/$defs/AnyJson"}} | node


def _object(node: Node) -> Node:
    if "properties" in node or "patternProperties" in node:
        return {"additionalProperties": False} | node
    return {"additionalProperties": {"$ref": "#/$defs/AnyJson"}} | node
