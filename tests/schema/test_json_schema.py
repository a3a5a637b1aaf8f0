import json
import re
from datetime import date, timedelta
from typing import Any

import pytest

from pipeline.schema.json_schema import (
    DATE_REGEX,
    canonicalize_schema,
    find_grammar_problems,
    format_schema,
    resolve_ref,
)
from tests.awkward_schemas import AWKWARD, TEXT, WHOLE, listed, struct


@pytest.mark.parametrize("name", AWKWARD)
def test_narrowing_twice_changes_nothing_and_the_grammar_takes_it(name: str) -> None:
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


def test_numbers_get_the_bounds_that_the_author_left_open() -> None:
    assert canonicalize_schema(WHOLE) == {"type": "integer", "minimum": -(10**15) + 1, "maximum": 10**15 - 1}
    assert canonicalize_schema(WHOLE | {"exclusiveMinimum": 0}) == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "maximum": 10**15 - 1,
    }


def test_free_json_is_made_of_what_can_be_stored_whatever_is_noted_beside_it() -> None:
    """As pydantic writes a field of any type: numbers without bounds would be infinite."""
    for node in ({}, True, {"title": "X"}, {"description": "anything", "default": None}):
        found = canonicalize_schema(struct(x=node))["properties"]["x"]
        assert found.pop("$ref") == "#/$defs/AnyJson"
        assert found.keys() <= {"description"}


def test_who_lists_fields_means_an_object_and_a_field_that_must_not_be_is_none() -> None:
    said = {"properties": {"a": {"items": WHOLE}, "b": False}, "required": ["a"]}
    assert canonicalize_schema(said) == canonicalize_schema(struct(a=listed(WHOLE)))


def test_the_day_pattern_matches_the_days_that_exist_and_no_others() -> None:
    day, matches = date(1896, 1, 1), 0
    while day < date(1905, 1, 1):
        assert re.fullmatch(DATE_REGEX, day.isoformat())
        day, matches = day + timedelta(days=1), matches + 1
    for year in (1896, 1900, 1904, 1999, 2000, 2001, 2100, 2400):
        for month in range(14):
            for number in range(33):
                spelt = f"{year}-{month:02}-{number:02}"
                assert bool(re.fullmatch(DATE_REGEX, spelt)) == exists(year, month, number), spelt


def exists(year: int, month: int, day: int) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (listed(TEXT) | {"uniqueItems": True}, r"\$\.a: .*uniqueItems"),
        ({"not": TEXT}, r"\$\.a: .*not"),
        (TEXT | {"pattern": "^(?=x)"}, r"\$\.a: .*look-around"),
        ({"allOf": [struct(x=TEXT), struct(y=TEXT)]}, r"\$\.a: allOf of several"),
        ({"oneOf": [WHOLE, {"type": "number"}]}, r"\$\.a: .*oneOf"),
        ({"type": "object", "additionalProperties": WHOLE, "minProperties": 2}, r"\$\.a: minProperties"),
    ],
)
def test_what_the_grammar_cannot_hold_is_named_with_its_place(node: dict[str, Any], complaint: str) -> None:
    found = find_grammar_problems(canonicalize_schema(struct(fine=WHOLE, a=node)))
    assert len(found) == 1
    assert re.match(complaint, found[0])


@pytest.mark.parametrize("reference", ["#/$defs/Missing", "https://example.org/schema", "other.json#/x"])
def test_a_reference_that_leads_nowhere_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="leads nowhere"):
        resolve_ref({"$ref": reference}, {"type": "object"})


def test_a_reference_to_itself_is_refused() -> None:
    root = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    with pytest.raises(ValueError, match="leads nowhere"):
        resolve_ref(root, root)
