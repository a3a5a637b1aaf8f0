"""Answers that cannot be used are asked for again."""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import AnswerError
from pipeline.output.answer.reask import answer_with_retries, build_retry_request
from pipeline.types import Failure, Item, Reply, Request, Row, Sampling


def build_item_requests(*ids: str) -> list[tuple[Item, Request]]:
    empty = np.zeros(0, np.int32)
    return [
        (Item(name, name, ()), Request(name, (), empty, empty.reshape(3, 0), sampling=Sampling(seed=5))) for name in ids
    ]


class FakeModel:
    """Gives each row its prepared replies, attempt by attempt, and records the requests."""

    def __init__(self, **replies: str | list[str]):
        self.replies = {name: list(texts) for name, texts in replies.items()}
        self.rounds: list[list[str]] = []
        self.sampling: list[Sampling] = []

    def __call__(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.rounds.append([request.id for request in requests])
        self.sampling += [request.sampling for request in requests]
        replies = [(request.id, self.replies[request.id].pop(0)) for request in requests]
        return [
            Failure(name, "generate", "no_close", "x") if text == "!" else Reply(name, text, output_tokens=len(text))
            for name, text in replies
        ]


def build_digit_row(item: Item, request: Request, reply: Reply, attempts: int) -> Row:
    """Take a digit as an answer with that many violations."""
    if not reply.text.isdigit():
        raise AnswerError("invalid_answer", "not a digit", text=reply.text)
    violations = tuple("x" * int(reply.text))
    tokens = (0, 0, reply.output_tokens)
    return Row(item.id, item.id, {}, reply.text, {}, "stop", (), *tokens, attempts, violations=violations)


def ask_model(model: FakeModel, *ids: str, retries: int) -> list[tuple[str, int]]:
    outcomes = answer_with_retries(
        build_item_requests(*ids), answer_requests=model, build_row=build_digit_row, max_retries=retries
    )
    return [(entry.kind if isinstance(entry, Failure) else entry.text, entry.attempts) for entry in outcomes]


def test_only_unusable_and_doubtful_answers_are_asked_again() -> None:
    model = FakeModel(a="0", b="x0", c="20")
    assert ask_model(model, "a", "b", "c", retries=2) == [("0", 1), ("0", 2), ("0", 2)]
    assert model.rounds == [["a", "b", "c"], ["b", "c"]]


def test_the_best_attempt_is_kept_and_all_are_counted() -> None:
    assert ask_model(FakeModel(a="312"), "a", retries=2) == [("1", 3)]
    assert ask_model(FakeModel(a="1x3"), "a", retries=2) == [("1", 3)]


def test_an_answer_that_never_validates_is_a_failure_with_its_text() -> None:
    failure = answer_with_retries(
        build_item_requests("a"), answer_requests=FakeModel(a="xy"), build_row=build_digit_row, max_retries=1
    )[0]
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.text, failure.attempts) == ("invalid_answer", "x", 2)


def test_a_row_that_the_engine_cannot_answer_is_not_asked_again() -> None:
    model = FakeModel(a="!0")
    assert ask_model(model, "a", retries=3) == [("no_close", 1)]


def test_without_retries_each_row_is_asked_once() -> None:
    model = FakeModel(a="x", b="1")
    assert ask_model(model, "a", "b", retries=0) == [("invalid_answer", 1), ("1", 1)]


def test_later_attempts_have_a_higher_temperature_and_another_seed() -> None:
    model = FakeModel(a="xxxxxx")
    ask_model(model, "a", retries=5)
    assert [sampling.temperature for sampling in model.sampling] == [0.0, 0.3, 0.6, 0.8, 1.0, 1.0]
    assert len({sampling.seed for sampling in model.sampling}) == 6


def test_the_first_attempt_sends_the_request_unchanged() -> None:
    request = build_item_requests("a")[0][1]
    assert build_retry_request(request, 1) is request


def test_tokens_of_replies_that_are_not_kept_are_counted() -> None:
    """Five digits and letters were written for a, four for b, and `!` stands for no reply."""
    model = FakeModel(a=["xxx", "1", "x"], b=["xx", "xx", "!"], c=["0"])
    outcomes = answer_with_retries(
        build_item_requests("a", "b", "c"), answer_requests=model, build_row=build_digit_row, max_retries=2
    )
    assert [outcome.discarded_tokens.output for outcome in outcomes] == [4, 4, 0]
