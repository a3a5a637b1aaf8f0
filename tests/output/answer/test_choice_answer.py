"""Answers from the log-probabilities of continuations."""

from __future__ import annotations

import math

import pytest

from pipeline.errors import AnswerError
from pipeline.job.answer_section import AnswerSection
from pipeline.output.answer.choice_answer import read_choice_answer

SINGLE = AnswerSection(choices=["red", "blue"])
MULTI = AnswerSection(choices=["fire", "smoke"], multi=True)


def test_the_likeliest_choice_is_the_answer_and_probabilities_add_up_to_one():
    fields = read_choice_answer([math.log(1e-9), math.log(3e-9)], SINGLE)
    assert (fields.answer, fields.text) == ("blue", "blue")
    assert fields.confidence == pytest.approx(0.75)
    assert fields.probabilities == pytest.approx({"red": 0.25, "blue": 0.75})


def test_a_choice_that_is_impossible_has_probability_zero():
    assert read_choice_answer([-math.inf, -5.0], SINGLE).probabilities == {"red": 0, "blue": 1}


@pytest.mark.parametrize("logprobs", [[-math.inf, -math.inf], [math.nan, 0.0]])
def test_without_any_probability_there_is_no_answer(logprobs):
    with pytest.raises(AnswerError, match="none of the choices"):
        read_choice_answer(logprobs, SINGLE)


def test_with_multi_each_choice_is_yes_or_no_by_itself_however_it_is_written():
    said_yes = [0.1, 0.5, 0.2, 0.0]  # yes, Yes, no, No
    said_no = [0.05, 0.05, 0.1, 0.2]
    logprobs = [math.log(share) if share else -math.inf for share in said_yes + said_no]
    fields = read_choice_answer(logprobs, MULTI)
    assert fields.answer == {"fire": True, "smoke": False}
    assert fields.text == "fire"
    assert fields.probabilities == pytest.approx({"fire": 0.75, "smoke": 0.25})
    assert fields.confidence == pytest.approx({"fire": 0.75, "smoke": 0.75})
