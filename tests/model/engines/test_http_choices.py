"""Choices from the first token's log-probabilities of a server."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.errors import GenerateError, JobError
from pipeline.job.spec import Job
from pipeline.model.engines.http import HttpEngineType
from pipeline.model.engines.http.choice_scores import read_choice_logprobs
from pipeline.types import Continuation
from tests.model.engines.chat_server import ChatServer, complete

pytestmark = pytest.mark.process


def tell(**shares):
    """A response whose first token is one of these, each as probable as given."""
    response = complete(next(iter(shares)), "length")
    listed = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    response.body["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": listed}]}
    return response


def parts(*texts):
    return [Continuation((), 0, text) for text in texts]


def read(response, *texts):
    logprobs = read_choice_logprobs(response.body, parts(*texts))
    return [round(math.exp(logprob), 6) for logprob in logprobs]


def test_a_choice_has_the_probability_of_the_tokens_that_it_begins_with():
    response = tell(**{"re": 0.1, " red": 0.5, "blue": 0.2, "Sure": 0.1, "": 0.1})
    assert read(response, "red", "blue", "green") == [0.6, 0.2, 0.0]


def test_a_token_that_begins_several_choices_fails_the_row_only_if_it_is_probable():
    assert read(tell(photo=0.5, phone=0.3, p=0.001), "photo", "phone") == [0.5, 0.3]
    with pytest.raises(GenerateError, match="begins as several choices do"):
        read(tell(photo=0.5, ph=0.3), "photo", "phone")


@pytest.mark.parametrize("response", [complete("red"), tell(red=1)], ids=["no logprobs", "no top"])
def test_a_server_that_tells_no_probabilities_stops_the_run(response):
    if logprobs := response.body["choices"][0].get("logprobs"):
        del logprobs["content"][0]["top_logprobs"]
    with pytest.raises(JobError, match=r"no log-probabilities .*answer\.choices"):
        read(response, "red", "blue")


def write_rows(workspace):
    chat = [{"role": "user", "content": "a car"}]
    workspace.write_manifest([{"id": name, "hint": "h", "messages": json.dumps(chat)} for name in "ab"])


@pytest.mark.parametrize("model", [{"weights": "builtin:tiny"}, {"family": "generic", "weights": ""}])
def test_a_run_asks_for_one_token_and_its_alternatives(workspace, model):
    write_rows(workspace)
    with ChatServer(lambda received: tell(red=0.6, blue=0.2)) as server:
        job = {"engine": {"kind": "http", "url": server.url, "model": "m"}, "input": {"media": []}, "model": model}
        assert workspace.run_job(**job, prompt={"user": None}, answer={"choices": ["red", "blue", "green"]}) == 0
        for received in server.received:
            body = received.body
            assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
            assert ("chat_template_kwargs" in body) is False
        assert len(server.received) == 2
    for row in workspace.read_answers():
        assert row["answer"] == "red"
        assert row["probabilities"] == pytest.approx({"red": 0.75, "blue": 0.25, "green": 0})
        assert row["tokens"]["prompt"] == 7


def test_with_multi_each_choice_is_a_request(workspace):
    write_rows(workspace)
    with ChatServer(lambda received: tell(Yes=0.9, no=0.1) if "fire" in received.text else tell(no=1.0)) as server:
        job = {"engine": {"kind": "http", "url": server.url, "model": "m"}, "input": {"media": []}}
        assert (
            workspace.run_job(**job, prompt={"user": None}, answer={"choices": ["fire", "smoke"], "multi": True}) == 0
        )
        assert sorted({received.text.rpartition("\n")[2] for received in server.received}) == [
            "Does this apply: fire? Answer with yes or no.",
            "Does this apply: smoke? Answer with yes or no.",
        ]
    for row in workspace.read_answers():
        assert row["answer"] == {"fire": True, "smoke": False}
        assert row["probabilities"] == pytest.approx({"fire": 0.9, "smoke": 0})
        assert row["tokens"]["prompt"] == 14


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"choices": ["red car", "red bus"]}, "'red car' and 'red bus' begin alike"),
        ({"choices": ["red", "reddish"]}, "begin alike"),
        ({"choices": ["red", "blue"], "choice_format": "a {choice}"}, "a server begins the answer itself"),
        ({"choices": ["red car", "red bus"], "multi": True}, None),
    ],
)
def test_choices_that_a_first_token_cannot_tell_apart_are_refused(answer, problem):
    job = {"name": "t", "input": {"manifest": "m"}, "model": {"weights": "builtin:tiny"}, "output": {"path": "out"}}
    job = Job.model_validate(job | {"engine": {"kind": "http", "url": "http://127.0.0.1:9"}, "answer": answer})
    problems = HttpEngineType().find_problems(job)
    assert [problem in text for text in problems] == ([True] if problem else [])
    assert "counts by its first token" in HttpEngineType().find_warnings(job)[0]
