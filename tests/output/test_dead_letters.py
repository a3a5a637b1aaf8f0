"""What is still wrong of a chunk, over its generations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline.output.dead_letters import DeadLetter, fold_generations

ROWS = [f"r{number}" for number in range(6)]


def letter(name: str, *, attempts: int = 1, stage: str = "fetch", kind: str = "timeout") -> DeadLetter:
    return DeadLetter(name, "q", stage, kind, "the server is silent", attempts, "run", "key")


def test_a_row_is_wrong_until_a_generation_answers_it():
    first = [letter("a"), letter("b")], []
    assert [each.id for each in fold_generations([first])] == ["a", "b"]
    assert [each.id for each in fold_generations([first, ([], [("a", "q")])])] == ["b"]


def test_what_a_generation_did_not_ask_stays_as_it_was_and_what_fails_again_has_its_newest_letter():
    found = fold_generations([([letter("a"), letter("b")], []), ([letter("a", attempts=2, kind="dns")], [])])
    assert [(each.id, each.attempts, each.kind) for each in found] == [("a", 2, "dns"), ("b", 1, "timeout")]


def test_another_question_under_the_same_id_answers_nothing():
    assert [each.id for each in fold_generations([([letter("a")], []), ([], [("a", "another")])])] == ["a"]


@settings(deadline=None)
@given(some.lists(some.dictionaries(some.sampled_from(ROWS), some.booleans()), max_size=6))
def test_a_row_is_wrong_when_it_was_asked_and_never_answered(generations):
    """Each generation asks some of the rows that are wrong by then: True is an answer."""
    wrong, written = set(ROWS), [([letter(row) for row in ROWS], [])]
    for asked in generations:
        asked = {row: answered for row, answered in asked.items() if row in wrong}
        answered = [(row, "q") for row in asked if asked[row]]
        written.append(([letter(row) for row in asked if not asked[row]], answered))
        wrong -= {row for row, _ in answered}
    assert {each.id for each in fold_generations(written)} == wrong


@pytest.mark.parametrize(
    ("kind", "matches"),
    [("", True), ("fetch", True), ("timeout", True), ("fetch/timeout", True), ("fetch/dns", False), ("decode", False)],
)
def test_a_kind_is_a_stage_or_a_kind_or_both(kind, matches):
    assert letter("a").is_of_kind(kind) is matches
