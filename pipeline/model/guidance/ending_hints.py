"""A canonical JSON Schema -> steps that help to end an answer: keys that must come, and endings of patterns.

A search that looks one byte ahead cannot see that `.*@.*` waits for an `@`, or which keys it may skip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as regex  # type: ignore[attr-defined]
from re import error as RegexError
from typing import Any

from pipeline.schema.json_schema import SchemaNode, iterate_subschemas, resolve_ref

FORMAT_EXAMPLES = {
    "email": "a@b.c",
    "uri": "a:",
    "duration": "P0D",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "hostname": "a",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
CANDIDATE_CHARACTERS = "a0A -_.@/:"  # tried where a pattern only says what a letter may not be


def collect_hints(schema: SchemaNode) -> list[bytes]:
    """Without doubles, in the order of the schema."""
    found: dict[bytes, None] = {}
    for name in schema.get("required", ()):
        found[json.dumps(name, ensure_ascii=False)[1:].encode() + b":"] = None
    example = (
        FORMAT_EXAMPLES.get(schema.get("format", ""))
        if "pattern" not in schema
        else find_shortest_match(schema["pattern"])
    )
    ending = json.dumps(example or "", ensure_ascii=False)[1:].encode()
    for start in range(len(ending) - 1):
        found[ending[start:]] = None
    for _, part in iterate_subschemas(schema):
        if isinstance(part, dict):
            found.update(dict.fromkeys(collect_hints(part)))
    return [hint for hint in found if len(hint) > 1]


def build_sample(schema: SchemaNode, *, with_optional: bool) -> bytes:
    """An answer with one of everything in its lists: what ends another answer is nearly always the end of this one."""
    return json.dumps(
        _build_sample_value(schema, schema, with_optional), ensure_ascii=False, separators=(",", ":")
    ).encode()


def _build_sample_value(node: Any, root: SchemaNode, with_optional: bool, visited_refs: tuple[str, ...] = ()) -> Any:
    if not isinstance(node, dict) or node.get("$ref") in visited_refs:
        return None
    visited_refs = (*visited_refs, node["$ref"]) if "$ref" in node else visited_refs
    node = resolve_ref(node, root)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return min(node["enum"], key=lambda value: len(json.dumps(value)))
    if parts := node.get("anyOf") or node.get("oneOf"):
        some = next((part for part in parts if part and part.get("type") != "null"), None)
        return _build_sample_value(some, root, with_optional, visited_refs)
    kinds = node.get("type", ())
    kind = kinds if isinstance(kinds, str) else next((kind for kind in kinds if kind != "null"), None)
    if kind == "object":
        inside = node.get("properties", {}).items()
        names = {name for name, _ in inside} if with_optional else node.get("required", ())
        return {
            name: _build_sample_value(part, root, with_optional, visited_refs) for name, part in inside if name in names
        }
    if kind == "array":
        first = [_build_sample_value(part, root, with_optional, visited_refs) for part in node.get("prefixItems", ())]
        return first or [_build_sample_value(node.get("items"), root, with_optional, visited_refs)] * max(
            1, node.get("minItems", 0)
        )
    if kind == "string":
        return (
            find_shortest_match(node["pattern"])
            if "pattern" in node
            else FORMAT_EXAMPLES.get(node.get("format", ""), "")
        )
    if kind in ("integer", "number"):
        return max(0, node.get("minimum", 0))
    return False if kind == "boolean" else None


def estimate_largest_instance(schema: SchemaNode) -> int:
    """Bytes of the shortest instance of the largest schema in a schema, about: what one token may open."""
    return max(
        [_estimate_bytes(schema, schema, ()), *(_estimate_bytes(part, schema, ()) for part in _list_subschemas(schema))]
    )


def _list_subschemas(node: Any) -> Iterator[Any]:
    for _, part in iterate_subschemas(node):
        yield part
        yield from _list_subschemas(part)


def _estimate_bytes(node: Any, root: SchemaNode, visited_refs: tuple[str, ...]) -> int:
    if not isinstance(node, dict) or node.get("$ref") in visited_refs:
        return 0
    visited_refs = (*visited_refs, node["$ref"]) if "$ref" in node else visited_refs
    node = resolve_ref(node, root)
    parts = node.get("anyOf") or node.get("oneOf")
    if parts:
        return min(_estimate_bytes(part, root, visited_refs) for part in parts)
    inside = node.get("properties", {})
    needed = sum(
        len(name) + 4 + _estimate_bytes(inside.get(name), root, visited_refs) for name in node.get("required", ())
    )
    listed = node.get("minItems", 0) * (1 + _estimate_bytes(node.get("items"), root, visited_refs))
    first = sum(_estimate_bytes(part, root, visited_refs) for part in node.get("prefixItems", ()))
    return int(2 + needed + listed + first + node.get("minLength", 0))


def find_shortest_match(pattern: str) -> str | None:
    """A short text that a regular expression matches; None where it is not one of Python's too.

    >>> shortest_match("^[A-Z]{3}-[0-9]{2}$")
    'AAA-00'
    """
    try:
        return _build_shortest(regex.parse(pattern))
    except (RegexError, OverflowError):
        return None


def _build_shortest(parsed: Any) -> str:
    return "".join(_build_part(kind, value) for kind, value in parsed)


def _build_part(kind: Any, value: Any) -> str:
    if kind is kinds.LITERAL:
        return chr(value)
    if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT):
        least, _, inner = value
        return _build_shortest(inner) * int(least)
    if kind is kinds.SUBPATTERN:
        return _build_shortest(value[-1])
    if kind is kinds.BRANCH:
        return min((_build_shortest(branch) for branch in value[1]), key=len)
    if kind is kinds.IN:
        return _choose_class_member(value)
    if kind in (kinds.ANY, kinds.NOT_LITERAL):
        return next(letter for letter in CANDIDATE_CHARACTERS if kind is kinds.ANY or letter != chr(value))
    return ""


def _choose_class_member(class_parts: Any) -> str:
    """A letter of a class."""
    if class_parts[0][0] is kinds.NEGATE:
        banned = {
            letter
            for letter in CANDIDATE_CHARACTERS
            for kind, value in class_parts[1:]
            if _is_in_class(kind, value, letter)
        }
        return next((letter for letter in CANDIDATE_CHARACTERS if letter not in banned), "a")
    kind, value = class_parts[0]
    if kind is kinds.CATEGORY:
        return next(letter for letter in CANDIDATE_CHARACTERS + "\t" if _is_in_class(kind, value, letter))
    return chr(int(value[0] if kind is kinds.RANGE else value))


def _is_in_class(kind: Any, value: Any, character: str) -> bool:
    if kind is kinds.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if kind is kinds.LITERAL:
        return bool(value == ord(character))
    name = str(value).removeprefix("CATEGORY_")
    is_in = {
        "DIGIT": character.isdigit(),
        "WORD": character.isalnum() or character == "_",
        "SPACE": character.isspace(),
    }
    return is_in.get(name, not is_in[name.removeprefix("NOT_")]) if name.removeprefix("NOT_") in is_in else False
