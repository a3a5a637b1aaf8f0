"""Finds in a schema what of an answer is compared, and how: a tree of fields, each with a comparator.

`x-compare` in a schema chooses. Otherwise the type does: numbers, dates and choices are what they are, other texts are
texts, lists of plain values are sets, and lists of objects are boxes, points, events or items by what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import JobError
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.registry import format_suggestion
from pipeline.schema.json_schema import SchemaCursor, SchemaNode, walk_references

COMPARE_KEY = "x-compare"
LIST_KINDS = {"boxes": "box", "points": "point", "events": "seconds", "items": ""}  # and what their elements hold
VALUE_KINDS = (
    "exact",
    "choice",
    "code",
    "text",
    "path",
    "number",
    "date",
    "set",
    "box",
)  # each has a comparator in `score`
KINDS = (*VALUE_KINDS, *LIST_KINDS, "object", "class", "ignore")
WHOLE_ANSWER = "answer"  # the path of the root


BOOLEAN_CHOICES = ("true", "false")


@dataclass(frozen=True, slots=True)
class ComparedField:
    path: str  # such as seller.name or lines[].amount
    name: str
    kind: str  # one of KINDS
    settings: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[ComparedField, ...] = ()  # of an object, or of the elements of a list
    meaning: str = ""  # box, point, seconds or image
    choices: tuple[str, ...] = ()  # of a choice

    @property
    def is_list(self) -> bool:
        return self.kind in LIST_KINDS

    def get_member(self, meaning: str) -> str | None:
        """The name of the first member with a meaning, or of the one by which elements are classed."""
        return next((part.name for part in self.members if meaning in (part.meaning, part.kind)), None)

    def list_members(self, meaning: str) -> list[str]:
        return [part.name for part in self.members if part.meaning == meaning]


def build_compared_fields(schema: SchemaNode | None) -> ComparedField:
    """The root; without a schema, the answer is a text."""
    if schema is None:
        return ComparedField(WHOLE_ANSWER, "", "text")
    meanings = find_field_meanings(schema)
    return walk_references(schema, lambda root: _build_field("", "", root, meanings))


def _build_field(path: str, name: str, cursor: SchemaCursor | None, meanings: Mapping[str, str]) -> ComparedField:
    meaning = meanings.get(name, "")
    choice = cursor.node.get(COMPARE_KEY) if cursor else None
    cursor = _skip_null(cursor)
    choice = choice or (cursor.node.get(COMPARE_KEY) if cursor else None) or {}
    settings = {"by": choice} if isinstance(choice, str) else dict(choice)
    members: tuple[ComparedField, ...] = ()
    if cursor and "object" in cursor.types:
        prefix = f"{path}." if path else ""
        members = _build_members(prefix, cursor, meanings)
    elif cursor and "array" in cursor.types and (element := _skip_null(cursor.items)) and "object" in element.types:
        members = _build_members(f"{path}[].", element, meanings)
    if meaning == "seconds":
        settings.setdefault("tolerance", 0.5)
    kind = settings.pop("by", None) or _choose_kind(cursor, members, meaning)
    if kind not in KINDS:
        raise JobError(
            f"{COMPARE_KEY} of {path}: {kind!r} is not known; known: {', '.join(KINDS)}"
            f"{format_suggestion(kind, dict.fromkeys(KINDS))}"
        )
    choices = list_choices(cursor) if cursor and kind == "choice" else ()
    return ComparedField(path or WHOLE_ANSWER, name, kind, settings, members, meaning, choices)


def _build_members(prefix: str, cursor: SchemaCursor, meanings: Mapping[str, str]) -> tuple[ComparedField, ...]:
    return tuple(_build_field(f"{prefix}{name}", name, part, meanings) for name, part in cursor.properties.items())


def _skip_null(cursor: SchemaCursor | None) -> SchemaCursor | None:
    """The schema of the values that are not null; None where there are several."""
    while cursor and cursor.alternatives:
        others = [part for part in cursor.alternatives if part is None or part.types != ["null"]]
        cursor = others[0] if len(others) == 1 else None
    return cursor


def list_choices(cursor: SchemaCursor) -> tuple[str, ...]:
    if cursor.constants is None:
        return BOOLEAN_CHOICES if "boolean" in cursor.types else ()
    return tuple(str(value) for value in cursor.constants if value is not None)


def _choose_kind(cursor: SchemaCursor | None, members: tuple[ComparedField, ...], meaning: str) -> str:
    if meaning == "box" and not members:
        return "box"
    if cursor is None or meaning in ("point", "image"):
        return "exact"
    if members:
        return _choose_list_kind(members) if "array" in cursor.types else "object"
    if cursor.constants is not None or "boolean" in cursor.types:
        return "choice"
    if "x-decimal" in cursor.node or {"integer", "number"} & set(cursor.types):
        return "number"
    if cursor.node.get("format") in ("date", "date-time"):
        return "date"
    return "text" if "string" in cursor.types else "set" if "array" in cursor.types else "exact"


def _choose_list_kind(members: tuple[ComparedField, ...]) -> str:
    meanings = [part.meaning for part in members]
    if {"box", "point"} & set(meanings):
        return "boxes" if "box" in meanings else "points"
    return "events" if meanings.count("seconds") == 2 else "items"
