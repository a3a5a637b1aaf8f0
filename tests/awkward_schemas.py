"""Schemas whose answers are hard to end: each is legal, and each defeats some simple way to find an ending."""

from __future__ import annotations

from typing import Any

Node = dict[str, Any]


def struct(**properties: Node) -> Node:
    return {"type": "object", "properties": properties, "required": list(properties)}


def listed(items: Node, **more: int) -> Node:
    return {"type": "array", "items": items, **more}


def either(*parts: Node) -> Node:
    return {"anyOf": list(parts)}


def pattern(text: str) -> Node:
    return struct(a={"type": "string", "pattern": text})


def recursive(node: Node) -> Node:
    return {"$ref": "#/$defs/Node", "$defs": {"Node": node}}


NODE: Node = {"$ref": "#/$defs/Node"}
TEXT: Node = {"type": "string"}
WHOLE: Node = {"type": "integer"}
NONE: Node = {"type": "null"}

AWKWARD: dict[str, Node] = {
    "a tree": recursive(struct(value=WHOLE, kids=listed(NODE))),
    "a tree of unions": recursive(either(listed(NODE, minItems=1), struct(leaf={"type": "boolean"}))),
    "a linked list": recursive(struct(next=either(NODE, NONE))),
    "a binary tree": recursive(
        struct(left=either(NODE, NONE), right=either(NODE, NONE), tag={"enum": ["alpha", "beta"]})
    ),
    "a number plate": pattern("^[A-Z]{3}-[0-9]{4}$"),
    "a pattern with a late end": pattern("^.*END$"),
    "a pattern with two late ends": pattern(r"^.*@.*\.com$"),
    "a pattern with negations": pattern(r"^[^@]+@[^@]+\.(com|org)$"),
    "a pattern with unequal branches": pattern("^(a.{30}|b.{2})x$"),
    "every format": struct(
        mail=TEXT | {"format": "email"},
        link=TEXT | {"format": "uri"},
        key=TEXT | {"format": "uuid"},
        moment=TEXT | {"format": "date-time"},
        day=TEXT | {"format": "date"},
        hour=TEXT | {"format": "time"},
        length=TEXT | {"format": "duration"},
        host=TEXT | {"format": "hostname"},
        old=TEXT | {"format": "ipv4"},
        new=TEXT | {"format": "ipv6"},
    ),
    "enums with shared beginnings": struct(a={"enum": ["animal/dog", "animal/dogfish", "animals", "animal", "cat"]}),
    "a long text": struct(a=TEXT | {"minLength": 60}),
    "texts of bounded length": struct(a=TEXT | {"maxLength": 7}, b=TEXT | {"minLength": 3, "maxLength": 3}),
    "a large array": struct(a=listed(WHOLE, minItems=30)),
    "a large array of objects": struct(a=listed(struct(x=TEXT, y={"type": "number"}), minItems=8)),
    "a large object that may be left out": struct(z=WHOLE)
    | {"properties": {"a": listed(struct(**{f"field_{index}": TEXT for index in range(15)})), "z": WHOLE}},
    "unlike alternatives": struct(
        a=either(TEXT | {"minLength": 40}, WHOLE | {"minimum": 1_000_000}, struct(kind={"const": "z"}, width=WHOLE))
    ),
    "tagged alternatives": struct(
        a=listed(
            either(
                struct(kind={"const": "circle"}, radius={"type": "number"}),
                struct(kind={"const": "polygon"}, points=listed(listed(WHOLE, minItems=2, maxItems=2), minItems=3)),
            )
        )
    ),
    "numbers in ranges": struct(
        a=WHOLE | {"minimum": 150, "maximum": 99_999},
        b={"type": "number", "exclusiveMinimum": 0},
        c=WHOLE | {"multipleOf": 7, "minimum": 100},
        d={"type": "number", "minimum": -1.5, "maximum": -0.25},
    ),
    "any JSON": {},
    "a dictionary": struct(a={"type": "object", "additionalProperties": listed(WHOLE, minItems=2)}),
    "a tuple": struct(a={"type": "array", "prefixItems": [TEXT, {"enum": ["x", "yy"]}, {"type": "boolean"}]}),
    "many keys that may be left out": {
        "type": "object",
        "properties": {f"k{index}": TEXT | {"pattern": "^[a-z]{4,}$"} for index in range(20)},
    },
    "nested lists that may not be empty": struct(a=listed(listed(listed(TEXT, minItems=1), minItems=1))),
    "keys by pattern": {"type": "object", "patternProperties": {"^x_": WHOLE}, "additionalProperties": False},
    "a bare number": {"type": "number"},
}


def nested_definitions(levels: int, fields: int) -> Node:
    """Definitions that refer to the next one in every field, so that their fields multiply with each level."""
    definitions = {
        f"Level{level}": struct(
            **{f"part_{number}": {"$ref": f"#/$defs/Level{level + 1}"} for number in range(fields)}, name=TEXT
        )
        | {"required": ["name"]}
        for level in range(levels)
    }
    return {"$ref": "#/$defs/Level0", "$defs": {**definitions, f"Level{levels}": TEXT}}
