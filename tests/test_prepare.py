"""An unexpected error costs one row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import answer, prepare
from pipeline.errors import AnswerError, PipelineError
from pipeline.types import Failure, Item, Reply, Request


def broken(*_, **__):
    raise ZeroDivisionError("a bug")


def hopeless(*_, **__):
    raise PipelineError("the decoder does not start")


@pytest.fixture
def answerer():
    answerer = answer.Answerer.__new__(answer.Answerer)
    job = SimpleNamespace(answer=SimpleNamespace(review_below=None))
    answerer.context = SimpleNamespace(job=job, confidence_maps={})
    answerer.read_answer = None
    return answerer


def test_unexpected_error_in_an_answer_costs_its_row(answerer, monkeypatch):
    monkeypatch.setattr(answer, "build_row", broken)
    failure = answerer.build_row(Item("a", "q", ()), None, Reply("a", "x"), 1)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.stage, failure.kind) == ("a", "internal", "internal")
    assert "ZeroDivisionError: a bug" in failure.message


def test_answer_that_does_not_fit_is_an_answer_error(answerer, monkeypatch):
    def unfit(*_, **__):
        raise AnswerError("not_json", "no JSON in it")

    monkeypatch.setattr(answer, "build_row", unfit)
    with pytest.raises(AnswerError):
        answerer.build_row(Item("a", "q", ()), None, Reply("a", "x"), 1)


def test_unexpected_error_in_preparation_costs_its_row_but_a_broken_worker_raises(monkeypatch):
    preparer = prepare.Preparer.__new__(prepare.Preparer)
    monkeypatch.setattr(prepare.Preparer, "build_request", broken)
    assert preparer.prepare_item(Item("a", "q", ())).kind == "internal"
    monkeypatch.setattr(prepare.Preparer, "build_request", hopeless)
    with pytest.raises(PipelineError):
        preparer.prepare_item(Item("a", "q", ()))


def test_unexpected_error_in_one_row_leaves_the_others_prepared(monkeypatch, tmp_path):
    asked = [(Item(name, "q", ()), None) for name in "abc"]
    preparer = prepare.Preparer.__new__(prepare.Preparer)
    preparer.fetcher = type("Fetcher", (), {"prefetch": staticmethod(lambda sources: None)})
    monkeypatch.setattr(prepare.Preparer, "build_request", lambda self, item: broken() if item.id == "b" else Request)
    assert [isinstance(entry, Failure) for _, entry in preparer.prepare_items(asked)] == [False, True, False]
