"""Answers under a grammar: always of the schema, never cut off, and forced tokens cost no step of their own."""

import json

import pytest

from pipeline.model.engines.torch import Torch
from pipeline.model.generate import run
from tests.model.engines.conftest import Lab

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["invoice", "receipt"]},
            "note": {"type": "string"},
            "lines": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["kind", "note", "lines"],
        "additionalProperties": False,
    }
)


def guided(lab: Lab, name: str, **sampling):
    from dataclasses import replace

    return replace(lab.ask(name, lab.picture(2, 2), "read", **sampling), schema=SCHEMA)


@pytest.fixture(scope="module")
def engine(one_lab: Lab):
    made = Torch(one_lab.folder, one_lab.family, device="cpu", slots=4, prefill_tokens=60)
    yield made
    made.close()


def test_every_answer_fits_the_schema_whatever_the_budget_and_free_rows_are_untouched(engine, one_lab):
    free = one_lab.ask("free", "hello")
    rows = [
        guided(one_lab, f"g{budget}", max_new_tokens=budget, temperature=1.0, seed=budget) for budget in (70, 90, 130)
    ]
    answers = {answer.id: answer for answer in run(engine, [rows[0], free, *rows[1:]])}
    for row in rows:
        said = json.loads(answers[row.id].text)
        assert said.keys() == {"kind", "note", "lines"}
        assert said["kind"] in ("invoice", "receipt")
        assert answers[row.id].tokens <= row.sampling.max_new_tokens
    tokens, _ = one_lab.generate(free)
    assert answers["free"].text == engine.vocabulary.text(tokens)


def test_forced_tokens_are_not_asked_of_the_model(engine, one_lab):
    before = engine.metrics()["steps"]
    (answer,) = run(engine, [guided(one_lab, "a", max_new_tokens=80)])
    assert engine.metrics()["steps"] - before < answer.tokens - 10


def test_a_budget_too_small_for_any_answer_is_an_error_row_that_names_the_least(engine, one_lab):
    answers = {
        answer.id: answer for answer in run(engine, [guided(one_lab, "a", max_new_tokens=5), one_lab.ask("b", "hi")])
    }
    assert answers["a"].kind == "no_close"
    assert answers["b"].text


def test_a_row_whose_answer_was_forced_to_end_says_so(engine, one_lab):
    least = engine.intake.grammars.minimum(SCHEMA)
    (answer,) = run(engine, [guided(one_lab, "a", max_new_tokens=least, temperature=1.0)])
    assert answer.finish == "length"
    json.loads(answer.text)


def test_thinking_comes_before_the_grammar_and_ends_in_time(tmp_path, one_lab):
    from dataclasses import replace

    engine = Torch(one_lab.folder, one_lab.family, device="cpu", slots=2)
    think_end = one_lab.family.tokenizer.token_to_id("</think>")
    engine.vocabulary = engine.intake.vocabulary = replace(engine.vocabulary, think_end=think_end)
    (answer,) = run(engine, [guided(one_lab, "a", max_new_tokens=90, thinking_tokens=12, temperature=1.0)])
    engine.close()
    assert answer.thinking
    assert json.loads(answer.text).keys() == {"kind", "note", "lines"}
