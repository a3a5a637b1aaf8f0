"""The rows of a chunk that are still failed after its generations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline.output.dead_letters import DeadLetter, fold_generations

ROWS = [f"r{number}" for number in range(6)]


def build_letter(name: str, *, attempts: int = 1, stage: str = "fetch", kind: str = "timeout") -> DeadLetter:
    return DeadLetter(name, "q", stage, kind, "the server is silent", attempts, "run", "key")


def test_a_row_is_failed_until_a_generation_answers_it():
    first = [build_letter("a"), build_letter("b")], []
    assert [each.id for each in fold_generations([first])] == ["a", "b"]
    assert [each.id for each in fold_generations([first, ([], [("a", "q")])])] == ["b"]


def test_the_newest_letter_of_a_row_counts():
    found = fold_generations(
        [([build_letter("a"), build_letter("b")], []), ([build_letter("a", attempts=2, kind="dns")], [])]
    )
    assert [(each.id, each.attempts, each.kind) for each in found] == [("a", 2, "dns"), ("b", 1, "timeout")]


def test_an_answer_to_another_question_of_the_same_id_does_not_count():
    assert [each.id for each in fold_generations([([build_letter("a")], []), ([], [("a", "another")])])] == ["a"]


@settings(deadline=None)
@given(some.lists(some.dictionaries(some.sampled_from(ROWS), some.booleans()), max_size=6))
def test_a_row_is_failed_if_it_was_asked_and_never_answered(generations):
    """Each generation asks some of the rows that are still failed; True stands for an answer."""
    failed, results = set(ROWS), [([build_letter(row) for row in ROWS], [])]
    for asked in generations:
        asked = {row: answered for row, answered in asked.items() if row in failed}
        answered = [(row, "q") for row in asked if asked[row]]
        results.append(([build_letter(row) for row in asked if not asked[row]], answered))
        failed -= {row for row, _ in answered}
    assert {each.id for each in fold_generations(results)} == failed


@pytest.mark.parametrize(
    ("kind", "matches"),
    [("", True), ("fetch", True), ("timeout", True), ("fetch/timeout", True), ("fetch/dns", False), ("decode", False)],
)
def test_a_filter_is_a_stage_or_a_kind_or_both(kind, matches):
    assert build_letter("a").is_of_kind(kind) is matches
