"""Derives from a schema what helps the search for endings: required keys, endings of patterns, and sample answers.

A search that looks one byte ahead cannot see that `.*@.*` needs an `@`, or which keys it may skip.
"""

from __future__ import annotations

import json
from re import _constants as regex_ops  # type: ignore[attr-defined]
from re import _parser as regex  # type: ignore[attr-defined]
from re import error as RegexError
from typing import Any

from pipeline.schema.json_schema import SchemaCursor, SchemaNode, resolve_ref, walk_references, walk_schema

FORMAT_EXAMPLES = {
    "email": "a@b.c",
    "uri": "a:",
    "duration": "P0D",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "hostname": "a",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
CANDIDATE_CHARACTERS = "a0A -_.@/:"  # tried for a class that only excludes characters


def collect_hints(schema: SchemaNode) -> list[bytes]:
    """The hints of a schema, without duplicates, in the order of the schema."""
    hints: dict[bytes, None] = {}
    for _, node in walk_schema(schema):
        for name in node.get("required", ()):
            hints[json.dumps(name, ensure_ascii=False)[1:].encode() + b":"] = None
        example = (
            find_shortest_match(node["pattern"]) if "pattern" in node else FORMAT_EXAMPLES.get(node.get("format", ""))
        )
        string_ending = json.dumps(example or "", ensure_ascii=False)[1:].encode()
        hints |= dict.fromkeys(string_ending[start:] for start in range(len(string_ending) - 1))
    return [hint for hint in hints if len(hint) > 1]


def build_sample(schema: SchemaNode, *, with_optional: bool) -> bytes:
    """An answer with one element in each list. Another answer usually ends as this one does."""
    value = walk_references(schema, lambda root: _build_sample_value(root, with_optional))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _build_sample_value(schema: SchemaCursor | None, with_optional: bool) -> Any:
    if schema is None:
        return None
    node = schema.node
    if schema.constants is not None:
        return min(schema.constants, key=lambda value: len(json.dumps(value)))
    if schema.alternatives:
        not_null = next((part for part in schema.alternatives if part and part.types != ["null"]), None)
        return _build_sample_value(not_null, with_optional)
    type_name = next((name for name in schema.types if name != "null"), None)
    if type_name == "object":
        properties = schema.properties
        names = properties if with_optional else set(node.get("required", ()))
        return {name: _build_sample_value(part, with_optional) for name, part in properties.items() if name in names}
    if type_name == "array":
        first_values = [_build_sample_value(part, with_optional) for part in schema.prefix_items]
        return first_values or [_build_sample_value(schema.items, with_optional)] * max(1, node.get("minItems", 0))
    if type_name == "string":
        return (
            find_shortest_match(node["pattern"])
            if "pattern" in node
            else FORMAT_EXAMPLES.get(node.get("format", ""), "")
        )
    if type_name in ("integer", "number"):
        return max(0, node.get("minimum", 0))
    return False if type_name == "boolean" else None


def estimate_largest_instance(schema: SchemaNode) -> int:
    """About how many bytes one token may add to the ending: the largest shortest instance of any subschema."""
    return max(_estimate_bytes(node, schema, {}) for _, node in walk_schema(schema))


def _estimate_bytes(node: Any, root: SchemaNode, known: dict[str, int]) -> int:
    """Bytes of the shortest instance, about. `known` has those of references; one inside itself counts nothing."""
    if not isinstance(node, dict):
        return 0
    if "$ref" in node:
        if (key := str(node)) not in known:
            known[key] = 0
            known[key] = _estimate_bytes(resolve_ref(node, root), root, known)
        return known[key]
    if alternatives := [*node.get("anyOf", ()), *node.get("oneOf", ())]:
        return min(_estimate_bytes(part, root, known) for part in alternatives)
    properties = node.get("properties", {})
    required = sum(
        len(name) + 4 + _estimate_bytes(properties.get(name), root, known) for name in node.get("required", ())
    )
    elements = node.get("minItems", 0) * (1 + _estimate_bytes(node.get("items"), root, known))
    first_elements = sum(_estimate_bytes(part, root, known) for part in node.get("prefixItems", ()))
    return int(2 + required + elements + first_elements + node.get("minLength", 0))


def find_shortest_match(pattern: str) -> str | None:
    """A short text that a regular expression matches; None if Python cannot parse the expression.

    >>> find_shortest_match("^[A-Z]{3}-[0-9]{2}$")
    'AAA-00'
    """
    try:
        return _build_shortest(regex.parse(pattern))
    except (RegexError, OverflowError):
        return None


def _build_shortest(parsed: Any) -> str:
    return "".join(_build_part(kind, value) for kind, value in parsed)


def _build_part(kind: Any, value: Any) -> str:
    if kind is regex_ops.LITERAL:
        return chr(value)
    if kind in (regex_ops.MAX_REPEAT, regex_ops.MIN_REPEAT):
        min_repeats, _, repeated = value
        return _build_shortest(repeated) * int(min_repeats)
    if kind is regex_ops.SUBPATTERN:
        return _build_shortest(value[-1])
    if kind is regex_ops.BRANCH:
        return min((_build_shortest(branch) for branch in value[1]), key=len)
    if kind is regex_ops.IN:
        return _choose_class_member(value)
    if kind in (regex_ops.ANY, regex_ops.NOT_LITERAL):
        return next(character for character in CANDIDATE_CHARACTERS if kind is regex_ops.ANY or character != chr(value))
    return ""


def _choose_class_member(class_parts: Any) -> str:
    if class_parts[0][0] is regex_ops.NEGATE:
        allowed = (
            character
            for character in CANDIDATE_CHARACTERS
            if not any(_is_in_class(kind, value, character) for kind, value in class_parts[1:])
        )
        return next(allowed, "a")
    kind, value = class_parts[0]
    if kind is regex_ops.CATEGORY:
        return next(character for character in CANDIDATE_CHARACTERS + "\t" if _is_in_class(kind, value, character))
    return chr(int(value[0] if kind is regex_ops.RANGE else value))


def _is_in_class(kind: Any, value: Any, character: str) -> bool:
    if kind is regex_ops.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if kind is regex_ops.LITERAL:
        return bool(value == ord(character))
    name = str(value).removeprefix("CATEGORY_")
    is_in = {
        "DIGIT": character.isdigit(),
        "WORD": character.isalnum() or character == "_",
        "SPACE": character.isspace(),
    }
    return is_in.get(name, not is_in[name.removeprefix("NOT_")]) if name.removeprefix("NOT_") in is_in else False
