"""Jobs whose answer is one of several choices, from manifest to Parquet, and their mistakes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import JobError
from pipeline.inspect.plan.survey import Survey
from pipeline.job.job_loader import parse_job
from pipeline.types import Continuation, Request, Sampling

CHOICES = {"choices": ["red", "blue", "green"]}


@pytest.fixture
def chats(workspace):
    """Three rows that are text: a word each."""
    rows = [
        {"id": name, "hint": "h", "messages": json.dumps([{"role": "user", "content": f"{name} car"}])}
        for name in ("blue", "green", "red")
    ]
    workspace.write_manifest(rows)
    return workspace


def run(workspace, answer, **sections):
    replies = {"Does this apply: blue": "Yes", "apply: ": "no", "blue car": "blue", "green car": "green", "red": "red"}
    job = {"input": {"media": []}, "prompt": {"user": None}, "engine": {"replies": replies}, "answer": answer}
    assert workspace.run_job(**job, **sections) == 0
    return workspace.read_answers()


def test_the_answer_is_a_choice_with_a_confidence_and_a_probability_for_each(chats):
    for row, label in zip(run(chats, CHOICES), ("blue", "green", "red"), strict=True):
        assert row["answer"] == row["text"] == label
        assert row["confidence"] == pytest.approx(9 / 11)
        others = dict.fromkeys({"red", "blue", "green"} - {label}, pytest.approx(1 / 11))
        assert row["probabilities"] == {label: pytest.approx(9 / 11), **others}
        assert row["tokens"]["output"] == 0 < row["tokens"]["prompt"]


def test_with_multi_the_answer_says_for_each_choice_whether_it_applies(chats):
    for row in run(chats, CHOICES | {"multi": True}):
        assert row["answer"] == {"red": False, "blue": True, "green": False}
        assert row["text"] == "blue"
        assert row["confidence"] == pytest.approx(dict.fromkeys(row["answer"], 5 / 6))
        assert row["probabilities"] == pytest.approx({"red": 1 / 6, "blue": 5 / 6, "green": 1 / 6})


def test_doubtful_rows_are_flagged_for_review(chats):
    rows = run(chats, CHOICES | {"review_below": 0.9})
    assert all(row["flags"] == ["review"] for row in rows)


def test_the_choices_are_a_part_of_the_question_and_so_is_their_order(chats):
    run(chats, CHOICES)
    run(chats, {"choices": ["blue", "red", "green"]}, allow_other_questions=True)
    run(chats, {"choices": ["blue", "red", "green"], "multi": True}, allow_other_questions=True)
    assert len(chats.read_answers()) == 9


def test_a_model_that_nobody_knows_chooses_with_a_server_alone(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    model = {"family": "generic", "weights": "builtin:tiny", "coordinates": "pixels"}
    with pytest.raises(JobError, match="with engine vllm an unknown model only writes; serve it, and use engine http"):
        workspace.run_job(answer=CHOICES, engine={"kind": "vllm"}, model=model)


def test_descriptions_beside_a_prompt_of_the_job_are_refused(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(JobError, match="descriptions are part of the default prompt"):
        workspace.run_job(answer={"choices": {"a": "first", "b": None}})


def test_a_kept_column_may_be_called_probabilities_only_without_choices(workspace):
    workspace.write_manifest([row | {"probabilities": 1} for row in workspace.draw_images(1)])
    assert workspace.run_job(input={"keep": ["probabilities"]}) == 0
    assert workspace.read_answers()[0]["probabilities"] == 1
    with pytest.raises(JobError, match="every output has a column probabilities of its own"):
        workspace.run_job(input={"keep": ["probabilities"]}, answer=CHOICES)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("choices: [yes, no]", "put it in quotes"),
        ("choices: [a]", "names one"),
        ("choices: [a, A]", "is there twice"),
        ("choices: ['a ', b]", "white space"),
        ("choices: red", "as a list, or as {label: description}"),
        ("choices: []", "as a list, or as {label: description}"),
        ("choices: [a, b], schema: caption", "leave one of them out"),
        ("choices: [a, b], thinking: {max_tokens: 5}", "cannot think"),
        ("choices: [a, b], choice_format: x", "must have {choice} once"),
        ("multi: true", "`choices`, which are missing"),
    ],
)
def test_mistakes_are_refused_with_a_reason(answer, problem):
    job = "name: t\ninput: {manifest: m, media: uri}\nmodel: {weights: builtin:tiny}\noutput: {path: out}\n"
    with pytest.raises(JobError) as caught:
        parse_job(job + f"answer: {{{answer}}}\n", environment={})
    assert problem in str(caught.value)


def test_numbers_are_labels():
    job = "name: t\ninput: {manifest: m, media: uri}\nmodel: {weights: builtin:tiny}\noutput: {path: out}\n"
    assert parse_job(job + "answer: {choices: [1, 2]}\n", environment={}).answer.choices == {"1": None, "2": None}


def test_a_plan_counts_the_tokens_behind_the_prompt_once_where_choices_share_them():
    survey, prompt = Survey(), np.zeros(10, np.int32)
    parts = tuple(Continuation(tokens, 0, "") for tokens in ((1, 2, 3), (1, 2, 4), (5,)))
    request = Request("a", (), prompt, prompt[None].repeat(3, 0), sampling=Sampling(max_new_tokens=0))
    survey.add_outcome(replace(request, continuations=parts))
    assert survey.text == {12: 1}
    assert survey.longest == 12
