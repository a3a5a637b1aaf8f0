"""What has been written -> how it is ended. Endings are compared in full: longer ones would cut answers earlier."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from pipeline.model.guidance.ending_hints import (
    build_sample,
    collect_hints,
    estimate_largest_instance,
    find_shortest_match,
)
from pipeline.model.guidance.ending_search import EndingSearch
from pipeline.schema.json_schema import canonicalize_schema, format_schema
from tests.awkward_schemas import AWKWARD, NODE, NONE, TEXT, WHOLE, either, listed, pattern, recursive, struct

OPTIONAL = struct(z=WHOLE) | {"properties": {"a": TEXT, "b": listed(TEXT), "z": WHOLE}}


def standing(schema: dict[str, Any], written: str) -> tuple[EndingSearch, LLMatcher]:
    narrowed = canonicalize_schema(schema)
    closer = EndingSearch(collect_hints(narrowed))
    grammar = LLMatcher.grammar_from_json_schema(format_schema(narrowed), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(closer.tokenizer, grammar)
    assert matcher.consume_tokens(list(written.encode()))
    return closer, matcher


def ending(schema: dict[str, Any], written: str) -> str | None:
    closer, matcher = standing(schema, written)
    found = closer.find_shortest(matcher)
    again = closer.find_shortest(matcher)
    assert found == again, "the search moved its matcher"
    return None if found is None else found.decode()


@pytest.mark.parametrize(
    ("schema", "written", "expected"),
    [
        (struct(a=TEXT), "", '{"a":""}'),
        (struct(a=TEXT), '{"a":"some te', '"}'),
        (struct(a=TEXT), '{"a":"\\u00', '00"}'),
        (struct(a=TEXT, b=WHOLE), '{"a":"x', '","b":0}'),
        (OPTIONAL, "{", '"z":0}'),
        (OPTIONAL, '{"a":"', '","z":0}'),
        (OPTIONAL, '{"b":["', '"],"z":0}'),
        (listed(listed(WHOLE)), "[[1,2", "]]"),
        (listed(listed(WHOLE)), "[[", "]]"),
        (listed(WHOLE), "[1,", "0]"),
        (struct(a=listed(WHOLE, minItems=3)), '{"a":[7', ",0,0]}"),
        (struct(a=either(struct(b=TEXT), NONE)), '{"a":', "null}"),
        (struct(a={"enum": ["dog", "dogfish", "cat"]}), '{"a":"do', 'g"}'),
        (struct(a={"enum": ["dogfish and chips", "dogs"]}), '{"a":"dog', 's"}'),
        (pattern("^[A-Z]{3}-[0-9]{4}$"), '{"a":"B', 'AA-0000"}'),
        (pattern("^.*END$"), '{"a":"whatever', 'END"}'),
        (pattern("^.*END$"), '{"a":"whatever EN', 'D"}'),
        (pattern(r"^.*@.*\.com$"), '{"a":"me', '@.com"}'),
        (pattern(r"^.*@.*\.com$"), '{"a":"me@home', '.com"}'),
        (recursive(struct(next=either(NODE, NONE))), '{"next":{"next":{', '"next":null}}}'),
        (recursive(either(listed(NODE, minItems=1), struct(leaf={"type": "boolean"}))), "[[", '{"leaf":true}]]'),
        (struct(a=TEXT | {"format": "date"}), '{"a":"19', '00-01-01"}'),
    ],
)
def test_an_answer_is_ended_in_the_shortest_way(schema: dict[str, Any], written: str, expected: str) -> None:
    found = ending(schema, written)
    assert found is not None
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"boxes":[', "]}"),
        ('{"boxes":[{"at":[1,45', ',0],"name":"","kind":"dog"}]}'),
        ('{"boxes":[{"at":[1,45,3],"name":"a quo', '","kind":"dog"}]}'),
        ('{"boxes":[{"at":[1,45,3],"name":"a","kind":"dog"}]}', ""),
        ('{"boxes":[],"note":"an', '"}'),
    ],
)
def test_most_endings_are_the_end_of_a_sample(written: str, expected: str) -> None:
    box = struct(at=listed(WHOLE, minItems=3, maxItems=3), name=TEXT, kind={"enum": ["doggy", "dog", "cat"]})
    schema = struct(boxes=listed(box)) | {"properties": {"boxes": listed(box), "note": either(TEXT, NONE)}}
    closer, matcher = standing(schema, written)
    samples = [build_sample(canonicalize_schema(schema), with_optional=optional) for optional in (False, True)]
    assert closer.find_tail(matcher, samples) == expected.encode()


@pytest.mark.parametrize("name", AWKWARD)
def test_every_schema_has_samples(name: str) -> None:
    lean, full = (
        json.loads(build_sample(canonicalize_schema(AWKWARD[name]), with_optional=optional))
        for optional in (False, True)
    )
    assert type(lean) is type(full)


def test_a_schema_that_cannot_end_has_no_ending() -> None:
    assert ending(recursive(struct(again=NODE)), '{"again":{') is None


def test_a_better_start_is_found_by_taking_a_choice_the_other_way() -> None:
    narrowed = canonicalize_schema(pattern("^(a.{30}|b.{2})x$"))
    closer = EndingSearch(collect_hints(narrowed))
    grammar = LLMatcher.grammar_from_json_schema(format_schema(narrowed), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(closer.tokenizer, grammar)
    found = closer.find_shortest(matcher)
    assert found is not None
    assert len(closer.shorten(matcher, found)) == len('{"a":"b..x"}')


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("^[A-Z]{3}-[0-9]{2}$", "AAA-00"),
        ("(long|s|xx)+", "s"),
        ("^a?b*c$", "c"),
        (r"^\d\w\s[^a]$", "0a 0"),
        ("^.x$", "ax"),
        ("(", None),
    ],
)
def test_the_shortest_match_of_a_pattern(expression: str, expected: str | None) -> None:
    assert find_shortest_match(expression) == expected


def test_hints_are_the_keys_that_must_come_and_the_endings_of_patterns() -> None:
    assert collect_hints(canonicalize_schema(struct(key=pattern("^ab$")))) == [b'key":', b'a":', b'ab"', b'b"']


@pytest.mark.parametrize("name", AWKWARD)
def test_the_largest_part_of_every_schema_has_a_size(name: str) -> None:
    assert 2 <= estimate_largest_instance(canonicalize_schema(AWKWARD[name])) < 1000
