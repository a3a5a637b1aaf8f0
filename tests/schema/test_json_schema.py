"""How schemas are narrowed, and how they are walked."""

import json
import re
from datetime import date, timedelta
from typing import Any

import pytest

from pipeline.schema.json_schema import (
    DATE_REGEX,
    SchemaCursor,
    canonicalize_schema,
    enter_schema,
    find_grammar_problems,
    format_schema,
    resolve_ref,
    walk_references,
    walk_schema,
)
from tests.awkward_schemas import AWKWARD, NONE, TEXT, WHOLE, either, listed, recursive, struct


@pytest.mark.parametrize("name", AWKWARD)
def test_canonical_schemas_are_stable_and_the_grammar_accepts_them(name: str) -> None:
    once = canonicalize_schema(AWKWARD[name])
    assert canonicalize_schema(once) == once
    assert json.loads(format_schema(once)) == once
    assert find_grammar_problems(once) == []


def test_objects_are_closed_unless_the_author_opened_them() -> None:
    assert canonicalize_schema(struct(a=WHOLE))["additionalProperties"] is False
    assert canonicalize_schema(struct(a=WHOLE) | {"additionalProperties": TEXT})["additionalProperties"] == TEXT


def test_a_property_may_be_called_like_a_keyword() -> None:
    narrowed = canonicalize_schema(struct(title=TEXT, default=TEXT, items=TEXT))
    assert list(narrowed["properties"]) == ["title", "default", "items"]


def test_unbounded_numbers_get_bounds() -> None:
    assert canonicalize_schema(WHOLE) == {"type": "integer", "minimum": -(10**15) + 1, "maximum": 10**15 - 1}
    assert canonicalize_schema(WHOLE | {"exclusiveMinimum": 0}) == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "maximum": 10**15 - 1,
    }


def test_a_schema_of_annotations_alone_means_any_storable_json() -> None:
    for node in ({}, True, {"title": "X"}, {"description": "anything", "default": None}):
        canonical = canonicalize_schema(struct(x=node))["properties"]["x"]
        assert canonical.pop("$ref") == "#/$defs/AnyJson"
        assert canonical.keys() <= {"description"}


def test_properties_imply_an_object_and_a_forbidden_property_disappears() -> None:
    schema = {"properties": {"a": {"items": WHOLE}, "b": False}, "required": ["a"]}
    assert canonicalize_schema(schema) == canonicalize_schema(struct(a=listed(WHOLE)))


def test_the_date_pattern_matches_exactly_the_days_that_exist() -> None:
    day, matches = date(1896, 1, 1), 0
    while day < date(1905, 1, 1):
        assert re.fullmatch(DATE_REGEX, day.isoformat())
        day, matches = day + timedelta(days=1), matches + 1
    for year in (1896, 1900, 1904, 1999, 2000, 2001, 2100, 2400):
        for month in range(14):
            for number in range(33):
                text = f"{year}-{month:02}-{number:02}"
                assert bool(re.fullmatch(DATE_REGEX, text)) == exists(year, month, number), text


def exists(year: int, month: int, day: int) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (listed(TEXT) | {"uniqueItems": True}, r"\$\.a: .*uniqueItems"),
        ({"not": TEXT}, r"\$\.a: .*not"),
        (TEXT | {"pattern": "^(?=x)"}, r"\$\.a: .*look-around"),
        ({"allOf": [struct(x=TEXT), struct(y=TEXT)]}, r"\$\.a: allOf of several"),
        ({"oneOf": [WHOLE, {"type": "number"}]}, r"\$\.a: .*oneOf"),
        ({"type": "object", "additionalProperties": WHOLE, "minProperties": 2}, r"\$\.a: minProperties"),
    ],
)
def test_grammar_problems_name_their_path(node: dict[str, Any], problem: str) -> None:
    problems = find_grammar_problems(canonicalize_schema(struct(fine=WHOLE, a=node)))
    assert len(problems) == 1
    assert re.match(problem, problems[0])


@pytest.mark.parametrize("reference", ["#/$defs/Missing", "https://example.org/schema", "other.json#/x"])
def test_a_reference_that_leads_nowhere_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="leads nowhere"):
        resolve_ref({"$ref": reference}, {"type": "object"})


def test_a_reference_to_itself_is_refused() -> None:
    root = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    with pytest.raises(ValueError, match="leads nowhere"):
        resolve_ref(root, root)


def test_walk_schema_yields_every_written_schema_with_its_path() -> None:
    schema = struct(a=listed(TEXT), b=either(WHOLE, NONE)) | {"additionalProperties": False, "$defs": {"C": NONE}}
    assert [path for path, _ in walk_schema(schema)] == [
        "$",
        "$.a",
        "$.a.items",
        "$.b",
        "$.b.anyOf[0]",
        "$.b.anyOf[1]",
        "$.$defs.C",
    ]


def test_a_cursor_resolves_references_and_never_enters_a_schema_inside_itself() -> None:
    schema = recursive(struct(value=WHOLE, kids=listed({"$ref": "#/$defs/Node"})))
    root = enter_schema(schema, schema)
    assert root is not None
    assert root.types == ["object"]
    assert list(root.properties) == ["value", "kids"]
    kids = root.properties["kids"]
    assert kids is not None
    assert kids.node["items"] == {"$ref": "#/$defs/Node"}
    assert kids.items is None
    assert enter_schema(True, schema) is None


def test_a_cursor_lists_alternatives_and_constants() -> None:
    schema = either({"enum": ["a", "b"]}, {"const": None}, TEXT)
    root = enter_schema(schema, schema)
    assert root is not None
    assert [part and part.constants for part in root.alternatives] == [["a", "b"], [None], None]


def test_a_few_walks_find_how_deep_references_can_be_followed() -> None:
    """Each walk that is too deep enters 5,000 schemas."""
    walks = []

    def count_levels(schema: SchemaCursor | None) -> int:
        return 0 if schema is None else 1 + max(map(count_levels, schema.properties.values()), default=0)

    def walk(root: SchemaCursor | None) -> int:
        walks.append(root)
        return count_levels(root)

    definitions = {
        f"Level{level}": struct(next={"$ref": f"#/$defs/Level{level + 1}"}, **{f"text_{n}": TEXT for n in range(200)})
        for level in range(40)
    }
    schema = {"$ref": "#/$defs/Level0", "$defs": {**definitions, "Level40": TEXT}}
    assert walk_references(schema, walk) == 25  # of 201 schemas each
    assert len(walks) < 9
