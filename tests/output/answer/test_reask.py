from collections.abc import Sequence

import numpy as np

from pipeline.errors import AnswerError
from pipeline.output.answer.reask import answer_with_retries, build_retry_request
from pipeline.types import Failure, Item, Reply, Request, Row, Sampling


def asked(*ids: str) -> list[tuple[Item, Request]]:
    empty = np.zeros(0, np.int32)
    return [
        (Item(name, name, ()), Request(name, (), empty, empty.reshape(3, 0), sampling=Sampling(seed=5))) for name in ids
    ]


class Model:
    """Says what it was told to, attempt by attempt, and remembers what it was asked."""

    def __init__(self, **says: str):
        self.says = {name: list(texts) for name, texts in says.items()}
        self.rounds: list[list[str]] = []
        self.sampling: list[Sampling] = []

    def __call__(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.rounds.append([request.id for request in requests])
        self.sampling += [request.sampling for request in requests]
        said = [(request.id, self.says[request.id].pop(0)) for request in requests]
        return [Failure(name, "generate", "no_close", "x") if text == "!" else Reply(name, text) for name, text in said]


def finish(item: Item, request: Request, reply: Reply, attempts: int) -> Row:
    """A digit is an answer with so many violations."""
    if not reply.text.isdigit():
        raise AnswerError("invalid_answer", "not a digit", text=reply.text)
    doubts = tuple("x" * int(reply.text))
    return Row(item.id, item.id, {}, reply.text, {}, "stop", (), 0, 0, 0, attempts, violations=doubts)


def outcomes(model: Model, *ids: str, retries: int) -> list[tuple[str, int]]:
    found = answer_with_retries(asked(*ids), answer_requests=model, build_row=finish, max_retries=retries)
    return [(entry.kind if isinstance(entry, Failure) else entry.text, entry.attempts) for entry in found]


def test_only_what_is_not_good_enough_is_asked_again() -> None:
    model = Model(a="0", b="x0", c="20")
    assert outcomes(model, "a", "b", "c", retries=2) == [("0", 1), ("0", 2), ("0", 2)]
    assert model.rounds == [["a", "b", "c"], ["b", "c"]]


def test_the_best_attempt_is_kept_and_all_are_counted() -> None:
    assert outcomes(Model(a="312"), "a", retries=2) == [("1", 3)]
    assert outcomes(Model(a="1x3"), "a", retries=2) == [("1", 3)]


def test_what_never_validates_is_a_failure_with_its_text() -> None:
    found = answer_with_retries(asked("a"), answer_requests=Model(a="xy"), build_row=finish, max_retries=1)[0]
    assert isinstance(found, Failure)
    assert (found.kind, found.text, found.attempts) == ("invalid_answer", "x", 2)


def test_a_row_that_the_engine_cannot_answer_is_not_asked_again() -> None:
    model = Model(a="!0")
    assert outcomes(model, "a", retries=3) == [("no_close", 1)]


def test_without_retries_everything_is_asked_once() -> None:
    model = Model(a="x", b="1")
    assert outcomes(model, "a", "b", retries=0) == [("invalid_answer", 1), ("1", 1)]


def test_later_attempts_are_warmer_and_have_other_seeds() -> None:
    model = Model(a="xxxxxx")
    outcomes(model, "a", retries=5)
    assert [found.temperature for found in model.sampling] == [0.0, 0.3, 0.6, 0.8, 1.0, 1.0]
    assert len({found.seed for found in model.sampling}) == 6


def test_the_first_attempt_is_the_request_itself() -> None:
    request = asked("a")[0][1]
    assert build_retry_request(request, 1) is request
