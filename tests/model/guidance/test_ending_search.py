"""Half-written answers and their shortest endings. A longer ending would truncate answers earlier."""

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
from tests.awkward_schemas import (
    AWKWARD,
    NODE,
    NONE,
    TEXT,
    WHOLE,
    either,
    listed,
    nested_definitions,
    pattern,
    recursive,
    struct,
)

OPTIONAL = struct(z=WHOLE) | {"properties": {"a": TEXT, "b": listed(TEXT), "z": WHOLE}}


def advance_matcher(schema: dict[str, Any], written: str) -> tuple[EndingSearch, LLMatcher]:
    canonical = canonicalize_schema(schema)
    search = EndingSearch(collect_hints(canonical))
    grammar = LLMatcher.grammar_from_json_schema(format_schema(canonical), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(search.tokenizer, grammar)
    assert matcher.consume_tokens(list(written.encode()))
    return search, matcher


def find_ending(schema: dict[str, Any], written: str) -> str | None:
    search, matcher = advance_matcher(schema, written)
    ending = search.find_shortest(matcher)
    assert search.find_shortest(matcher) == ending, "the search moved its matcher"
    return None if ending is None else ending.decode()


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
        (recursive(struct(kids=listed(NODE, maxItems=1))), '{"kids":[' * 20, "]}" * 20),
        (struct(a=TEXT | {"format": "date"}), '{"a":"19', '00-01-01"}'),
    ],
)
def test_the_shortest_ending_is_found(schema: dict[str, Any], written: str, expected: str) -> None:
    ending = find_ending(schema, written)
    assert ending is not None
    assert len(ending) == len(expected), ending


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
def test_most_endings_are_the_tail_of_a_sample(written: str, expected: str) -> None:
    box = struct(at=listed(WHOLE, minItems=3, maxItems=3), name=TEXT, kind={"enum": ["doggy", "dog", "cat"]})
    schema = struct(boxes=listed(box)) | {"properties": {"boxes": listed(box), "note": either(TEXT, NONE)}}
    search, matcher = advance_matcher(schema, written)
    samples = [build_sample(canonicalize_schema(schema), with_optional=optional) for optional in (False, True)]
    assert search.find_tail(matcher, samples) == expected.encode()


@pytest.mark.parametrize("name", AWKWARD)
def test_every_schema_has_samples(name: str) -> None:
    lean, full = (
        json.loads(build_sample(canonicalize_schema(AWKWARD[name]), with_optional=optional))
        for optional in (False, True)
    )
    assert type(lean) is type(full)


def test_a_schema_that_cannot_end_has_no_ending() -> None:
    assert find_ending(recursive(struct(again=NODE)), '{"again":{') is None


def test_shorten_changes_a_single_choice() -> None:
    canonical = canonicalize_schema(pattern("^(a.{30}|b.{2})x$"))
    search = EndingSearch(collect_hints(canonical))
    grammar = LLMatcher.grammar_from_json_schema(format_schema(canonical), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(search.tokenizer, grammar)
    ending = search.find_shortest(matcher)
    assert ending is not None
    assert len(search.shorten(matcher, ending)) == len('{"a":"b..x"}')


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


def test_hints_are_required_keys_and_endings_of_patterns() -> None:
    assert collect_hints(canonicalize_schema(struct(key=pattern("^ab$")))) == [b'key":', b'a":', b'ab"', b'b"']


@pytest.mark.parametrize("name", AWKWARD)
def test_the_largest_instance_of_every_schema_is_estimated(name: str) -> None:
    assert 2 <= estimate_largest_instance(canonicalize_schema(AWKWARD[name])) < 1000


def test_definitions_that_multiply_have_samples_and_an_estimate() -> None:
    schema = canonicalize_schema(nested_definitions(levels=30, fields=4))
    sample = json.loads(build_sample(schema, with_optional=True))
    assert list(sample) == ["part_0", "part_1", "part_2", "part_3", "name"]
    assert estimate_largest_instance(schema) < 100
