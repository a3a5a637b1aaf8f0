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

from pipeline.schema.json_schema import Node, children, resolve

EXAMPLES = {
    "email": "a@b.c",
    "uri": "a:",
    "duration": "P0D",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "hostname": "a",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
LETTERS = "a0A -_.@/:"  # tried where a pattern only says what a letter may not be


def hints(schema: Node) -> list[bytes]:
    """Without doubles, in the order of the schema."""
    found: dict[bytes, None] = {}
    for name in schema.get("required", ()):
        found[json.dumps(name, ensure_ascii=False)[1:].encode() + b":"] = None
    example = EXAMPLES.get(schema.get("format", "")) if "pattern" not in schema else shortest_match(schema["pattern"])
    ending = json.dumps(example or "", ensure_ascii=False)[1:].encode()
    for start in range(len(ending) - 1):
        found[ending[start:]] = None
    for _, part in children(schema):
        if isinstance(part, dict):
            found.update(dict.fromkeys(hints(part)))
    return [hint for hint in found if len(hint) > 1]


def sample(schema: Node, *, optional: bool) -> bytes:
    """An answer with one of everything in its lists: what ends another answer is nearly always the end of this one."""
    return json.dumps(_sample(schema, schema, optional), ensure_ascii=False, separators=(",", ":")).encode()


def _sample(node: Any, root: Node, optional: bool, above: tuple[str, ...] = ()) -> Any:
    if not isinstance(node, dict) or node.get("$ref") in above:
        return None
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = resolve(node, root)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return min(node["enum"], key=lambda value: len(json.dumps(value)))
    if parts := node.get("anyOf") or node.get("oneOf"):
        some = next((part for part in parts if part and part.get("type") != "null"), None)
        return _sample(some, root, optional, above)
    kinds = node.get("type", ())
    kind = kinds if isinstance(kinds, str) else next((kind for kind in kinds if kind != "null"), None)
    if kind == "object":
        inside = node.get("properties", {}).items()
        names = {name for name, _ in inside} if optional else node.get("required", ())
        return {name: _sample(part, root, optional, above) for name, part in inside if name in names}
    if kind == "array":
        first = [_sample(part, root, optional, above) for part in node.get("prefixItems", ())]
        return first or [_sample(node.get("items"), root, optional, above)] * max(1, node.get("minItems", 0))
    if kind == "string":
        return shortest_match(node["pattern"]) if "pattern" in node else EXAMPLES.get(node.get("format", ""), "")
    if kind in ("integer", "number"):
        return max(0, node.get("minimum", 0))
    return False if kind == "boolean" else None


def least(schema: Node) -> int:
    """Bytes of the shortest instance of the largest schema in a schema, about: what one token may open."""
    return max([_bytes(schema, schema, ()), *(_bytes(part, schema, ()) for part in _below(schema))])


def _below(node: Any) -> Iterator[Any]:
    for _, part in children(node):
        yield part
        yield from _below(part)


def _bytes(node: Any, root: Node, above: tuple[str, ...]) -> int:
    if not isinstance(node, dict) or node.get("$ref") in above:
        return 0
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = resolve(node, root)
    parts = node.get("anyOf") or node.get("oneOf")
    if parts:
        return min(_bytes(part, root, above) for part in parts)
    inside = node.get("properties", {})
    needed = sum(len(name) + 4 + _bytes(inside.get(name), root, above) for name in node.get("required", ()))
    listed = node.get("minItems", 0) * (1 + _bytes(node.get("items"), root, above))
    first = sum(_bytes(part, root, above) for part in node.get("prefixItems", ()))
    return int(2 + needed + listed + first + node.get("minLength", 0))


def shortest_match(pattern: str) -> str | None:
    """A short text that a regular expression matches; None where it is not one of Python's too.

    >>> shortest_match("^[A-Z]{3}-[0-9]{2}$")
    'AAA-00'
    """
    try:
        return _shortest(regex.parse(pattern))
    except (RegexError, OverflowError):
        return None


def _shortest(parsed: Any) -> str:
    return "".join(_one(kind, value) for kind, value in parsed)


def _one(kind: Any, value: Any) -> str:
    if kind is kinds.LITERAL:
        return chr(value)
    if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT):
        least, _, inner = value
        return _shortest(inner) * int(least)
    if kind is kinds.SUBPATTERN:
        return _shortest(value[-1])
    if kind is kinds.BRANCH:
        return min((_shortest(branch) for branch in value[1]), key=len)
    if kind is kinds.IN:
        return _member(value)
    if kind in (kinds.ANY, kinds.NOT_LITERAL):
        return next(letter for letter in LETTERS if kind is kinds.ANY or letter != chr(value))
    return ""


def _member(parts: Any) -> str:
    """A letter of a class."""
    if parts[0][0] is kinds.NEGATE:
        banned = {letter for letter in LETTERS for kind, value in parts[1:] if _holds(kind, value, letter)}
        return next((letter for letter in LETTERS if letter not in banned), "a")
    kind, value = parts[0]
    if kind is kinds.CATEGORY:
        return next(letter for letter in LETTERS + "\t" if _holds(kind, value, letter))
    return chr(int(value[0] if kind is kinds.RANGE else value))


def _holds(kind: Any, value: Any, letter: str) -> bool:
    if kind is kinds.RANGE:
        return bool(value[0] <= ord(letter) <= value[1])
    if kind is kinds.LITERAL:
        return bool(value == ord(letter))
    name = str(value).removeprefix("CATEGORY_")
    is_in = {"DIGIT": letter.isdigit(), "WORD": letter.isalnum() or letter == "_", "SPACE": letter.isspace()}
    return is_in.get(name, not is_in[name.removeprefix("NOT_")]) if name.removeprefix("NOT_") in is_in else False
