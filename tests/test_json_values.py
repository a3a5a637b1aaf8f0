"""Which texts hold one JSON value, and what is repaired in them."""

import pytest

from pipeline.errors import AnswerError
from pipeline.json_values import parse_answer


def test_plain_json_is_not_repaired() -> None:
    assert parse_answer('{"a": [1, 2.5, null, "x"]}') == ({"a": [1, 2.5, None, "x"]}, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("Sure! Here it is:\n```\n[1, 2]\n```\nAnything else?", [1, 2]),
        ('The answer is {"a": 1}.', {"a": 1}),
        ('{"a": [1, 2,], }', {"a": [1, 2]}),
        ("{'a': 'x', 'b': None, 'c': True}", {"a": "x", "b": None, "c": True}),
        ("{'a': true, 'b': null}", {"a": True, "b": None}),
        ("{'it': \"don't\"}", {"it": "don't"}),
        ('The dog\'s box: {"a": "don\'t"}', {"a": "don't"}),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        ('```json\n{"a": "use ```x``` here"}\n```', {"a": "use ```x``` here"}),
        ("{'a': ['', 'b' , 'it\\'s']}", {"a": ["", "b", "it's"]}),
    ],
)
def test_surrounding_text_and_python_syntax_are_repaired(text: str, value: object) -> None:
    assert parse_answer(text) == (value, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "x, ]", }', {"a": "x, ]"}),
        ('{"a": "it is true, or null",}', {"a": "it is true, or null"}),
        ("{'a': 'true, ]'}", {"a": "true, ]"}),
        ('{"a": "```", }', {"a": "```"}),
        ('text {"a": "}"} text', {"a": "}"}),
    ],
)
def test_repair_changes_nothing_inside_strings(text: str, value: object) -> None:
    assert parse_answer(text) == (value, True)


@pytest.mark.parametrize(
    "text",
    [
        *("", "no idea", '{"a": "cut o', '{"a": 1', "[1] or [2]", '{"a": NaN}', '{"a": -Infinity}'),
        *("['cat' 'dog']", '{"a": "b"\n"c": 1}', '{"a": 1e999}'),
    ],
)
def test_a_text_without_exactly_one_value_is_refused(text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(text)
    assert caught.value.kind == "not_json"
    assert caught.value.text == text


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert parse_answer('{"a": "\\ud83d!"}') == ({"a": "\ufffd!"}, True)


def test_a_surrogate_pair_is_kept() -> None:
    assert parse_answer('{"a": "\\ud83d\\ude00"}') == ({"a": "\U0001f600"}, False)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(AnswerError):
        parse_answer("[" * 100_000)
