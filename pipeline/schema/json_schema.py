"""Walks JSON Schemas, and narrows them to the canonical text that guides, validates and types answers.

Every value that fits the canonical schema can be stored: numbers have bounds, dates exist, objects are closed unless
the author opened them, and `{}` means any JSON made of such parts. The cost: integers beyond 15 digits must be
strings. `find_grammar_problems` names what the grammar cannot enforce; nothing is dropped silently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
SchemaNode = dict[str, Any]
MAX_ENTERED_SCHEMAS = 5000  # by one walk through references: definitions that refer to each other multiply
MAX_REFERENCE_DEPTH = 64  # of references inside references: Python's recursion has a limit, too
MAX_INTEGER = 10**15 - 1  # fifteen digits: exact in an int64, in a double, and in other people's JSON readers

SINGLE_SCHEMA_KEYS = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
SCHEMA_LIST_KEYS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMA_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
ANNOTATION_KEYS = (
    *("title", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"),
    "x-compare",  # how `score` compares a field is no part of the question
)
TYPE_KEYS = {"type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if"}
IMPLIED_TYPES = {"properties": "object", "items": "array", "prefixItems": "array"}
GRAMMAR_FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

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


class TooManySchemasError(Exception):
    """A walk through references entered more schemas than its limit allows."""


@dataclass(slots=True)
class WalkLimit:
    """How far the cursors of one walk follow references."""

    max_depth: int  # of references inside references
    entries_left: float

    def allows(self, parent_refs: tuple[str, ...]) -> bool:
        self.entries_left -= 1
        if self.entries_left < 0:
            raise TooManySchemasError
        return len(parent_refs) <= self.max_depth


@dataclass(frozen=True, slots=True)
class SchemaCursor:
    """A place in a schema, with its `$ref` resolved. No cursor enters a boolean schema, or a `$ref` inside itself."""

    node: SchemaNode
    root: SchemaNode
    parent_refs: tuple[str, ...]  # the references that were followed to get here
    limit: WalkLimit | None = field(default=None, compare=False)

    @property
    def types(self) -> list[str]:
        names = self.node.get("type", [])
        return [names] if isinstance(names, str) else list(names)

    @property
    def constants(self) -> list[Any] | None:
        """The values of `enum` or `const`; None where the schema has neither."""
        return self.node.get("enum", [self.node["const"]] if "const" in self.node else None)

    @property
    def alternatives(self) -> list[SchemaCursor | None]:
        return [self.enter(part) for key in ("anyOf", "oneOf") for part in self.node.get(key, ())]

    @property
    def properties(self) -> dict[str, SchemaCursor | None]:
        return {name: self.enter(part) for name, part in self.node.get("properties", {}).items()}

    @property
    def items(self) -> SchemaCursor | None:
        return self.enter(self.node.get("items"))

    @property
    def prefix_items(self) -> list[SchemaCursor | None]:
        return [self.enter(part) for part in self.node.get("prefixItems", ())]

    def enter(self, node: Any) -> SchemaCursor | None:
        return enter_schema(node, self.root, self.parent_refs, self.limit)


def enter_schema(
    node: Any, root: SchemaNode, parent_refs: tuple[str, ...] = (), limit: WalkLimit | None = None
) -> SchemaCursor | None:
    if not isinstance(node, dict) or node.get("$ref") in parent_refs:
        return None
    parent_refs = (*parent_refs, node["$ref"]) if "$ref" in node else parent_refs
    if limit and not limit.allows(parent_refs):
        return None
    return SchemaCursor(resolve_ref(node, root), root, parent_refs, limit)


def walk_references(schema: SchemaNode, walk: Callable[[SchemaCursor | None], T]) -> T:
    """What `walk` returns for the root of a schema. If it enters too many schemas, it starts again and follows
    references less deep: as deep as the limit allows. No cursor enters a reference below that."""

    def try_depth(max_depth: int, entries: float) -> T:
        return walk(enter_schema(schema, schema, (), WalkLimit(max_depth, entries)))

    try:
        return try_depth(MAX_REFERENCE_DEPTH, MAX_ENTERED_SCHEMAS)
    except TooManySchemasError:
        result, depth, too_deep = try_depth(0, math.inf), 0, MAX_REFERENCE_DEPTH
    while too_deep - depth > 1:
        middle = (depth + too_deep) // 2
        try:
            result, depth = try_depth(middle, MAX_ENTERED_SCHEMAS), middle
        except TooManySchemasError:
            too_deep = middle
    return result


def walk_schema(node: SchemaNode, path: str = "$") -> Iterator[tuple[str, SchemaNode]]:
    """A schema and every schema written inside it, depth first, each with its path. Does not follow `$ref`."""
    yield path, node
    for child_path, child in iterate_subschemas(node, path):
        yield from walk_schema(child, child_path)


def iterate_subschemas(node: SchemaNode, path: str = "$") -> Iterator[tuple[str, SchemaNode]]:
    """The schemas directly inside a schema, each with its path; boolean schemas are left out."""
    children = [(f"{path}.{key}", node.get(key)) for key in SINGLE_SCHEMA_KEYS]
    children += [
        (f"{path}.{key}[{index}]", part) for key in SCHEMA_LIST_KEYS for index, part in enumerate(node.get(key, ()))
    ]
    children += [
        (f"{path}.{name}" if key == "properties" else f"{path}.{key}.{name}", part)
        for key in SCHEMA_MAP_KEYS
        for name, part in node.get(key, {}).items()
    ]
    return ((child_path, child) for child_path, child in children if isinstance(child, dict))


def resolve_ref(node: SchemaNode, root: SchemaNode) -> SchemaNode:
    """The schema that a `$ref` points to, merged with the keys beside it."""
    seen_refs = set()
    while "$ref" in node:
        reference, target = node["$ref"], root
        steps = [step.replace("~1", "/").replace("~0", "~") for step in reference.removeprefix("#").split("/") if step]
        for step in steps:
            target = target.get(step, {}) if isinstance(target, dict) else {}
        if reference in seen_refs or not reference.startswith("#") or (steps and not target):
            raise ValueError(f"$ref {reference} leads nowhere: it must point to a schema in the same file")
        seen_refs.add(reference)
        node = target | {key: value for key, value in node.items() if key != "$ref"}
    return node


def canonicalize_schema(schema: SchemaNode) -> SchemaNode:
    """The same schema, narrowed to what can be stored. Idempotent."""
    result: SchemaNode = _narrow_schema(schema)
    if '"#/$defs/AnyJson"' in json.dumps(result):
        result.setdefault("$defs", {})["AnyJson"] = ANY_JSON
    return result


def format_schema(schema: SchemaNode) -> str:
    """The canonical text of a schema. Properties keep their order, which is the order of the answer."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def find_grammar_problems(schema: SchemaNode) -> list[str]:
    """The parts that the grammar cannot enforce, each with its path; empty for a schema that works."""
    from llguidance import LLMatcher

    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def find_refusal(node: SchemaNode) -> str:
        grammar = LLMatcher.grammar_from_json_schema(format_schema(node), overrides={"whitespace_flexible": False})
        return str(LLMatcher.validate_grammar(grammar))

    def find_problems(path: str, node: SchemaNode) -> Iterator[str]:
        problems = [problem for place, part in iterate_subschemas(node, path) for problem in find_problems(place, part)]
        if len(node.get("allOf", ())) > 1:
            problems.append(f"{path}: allOf of several schemas: write one object with all properties")
        if "minProperties" in node:
            problems.append(f"{path}: minProperties: a key may come twice; name the keys that are required")
        refusal = find_refusal(node | definitions)
        yield from problems or ([f"{path}: {refusal.splitlines()[-1].removeprefix('error: ')}"] if refusal else [])

    has_risky_key = any(f'"{key}"' in format_schema(schema) for key in ("allOf", "minProperties"))
    return sorted(set(find_problems("$", schema))) if has_risky_key or find_refusal(schema) else []


def _narrow_schema(node: Any) -> Any:
    node = {} if node is True else node
    if not isinstance(node, dict):
        return node
    node = _map_subschemas(
        {key: value for key, value in node.items() if key not in ANNOTATION_KEYS},
        _narrow_schema,
    )
    if not node.keys() - {"description"}:
        return {"$ref": "#/$defs/AnyJson"} | node
    if node.pop("discriminator", None) and "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")  # the discriminator makes the branches exclusive
    if len(node.get("allOf", ())) == 1:
        node = node.pop("allOf")[0] | node
    if not node.keys() & TYPE_KEYS:  # a schema that lists properties means an object
        implied_type = next((name for key, name in IMPLIED_TYPES.items() if key in node), None)
        node = {"type": implied_type} | node if implied_type else node
    if {"enum", "const"} & set(node):
        return node
    types = node.get("type", [])
    for type_name, narrow in (
        ("string", _narrow_string),
        ("integer", _narrow_number),
        ("number", _narrow_number),
        ("array", _narrow_array),
        ("object", _narrow_object),
    ):
        if type_name in ([types] if isinstance(types, str) else types):
            node = narrow(node)
    return node


def _map_subschemas(node: SchemaNode, transform: Callable[[Any], Any]) -> SchemaNode:
    """A copy of a schema with `transform` applied to each schema directly inside it."""
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
    is_enforceable = node.get("format", "date") in GRAMMAR_FORMATS
    return node if is_enforceable else {key: value for key, value in node.items() if key != "format"}


def build_decimal_schema(*, integer_digits: int = 18, decimal_places: int = 6, signed: bool = True) -> SchemaNode:
    """A decimal number, written as a string so that it never becomes a float."""
    fraction = rf"(\.[0-9]{{1,{decimal_places}}})?" if decimal_places else ""
    pattern = rf"^{'-?' if signed else ''}(0|[1-9][0-9]{{0,{integer_digits - 1}}}){fraction}$"
    return {"type": "string", "pattern": pattern, "x-decimal": [integer_digits + decimal_places, decimal_places]}


def _narrow_number(node: SchemaNode) -> SchemaNode:
    lower_bound = {} if {"minimum", "exclusiveMinimum"} & set(node) else {"minimum": -MAX_INTEGER}
    upper_bound = {} if {"maximum", "exclusiveMaximum"} & set(node) else {"maximum": MAX_INTEGER}
    return node | lower_bound | upper_bound


def _narrow_array(node: SchemaNode) -> SchemaNode:
    if "prefixItems" in node:
        return {"items": False, "minItems": len(node["prefixItems"])} | node
    return {"items": {"$ref": "#/$defs/AnyJson"}} | node


def _narrow_object(node: SchemaNode) -> SchemaNode:
    if "properties" in node or "patternProperties" in node:
        return {"additionalProperties": False} | node
    return {"additionalProperties": {"$ref": "#/$defs/AnyJson"}} | node
