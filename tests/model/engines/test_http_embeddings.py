"""Vectors from `/v1/embeddings` of a server: what it is sent, and what its answers become."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.errors import JobError
from pipeline.model.engines.http import client
from pipeline.retry_policy import RetryPolicy
from tests.model.engines.chat_server import ChatServer, ReceivedRequest, ServerResponse, refuse

pytestmark = pytest.mark.process

WIDTH = 256


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch):
    monkeypatch.setattr(client, "RETRY_POLICY", RetryPolicy(first_wait_s=0.01, longest_wait_s=0.01))


def embed(received: ReceivedRequest) -> ServerResponse:
    assert received.path == "/v1/embeddings"
    vector = np.resize(np.frombuffer(json.dumps(received.body, sort_keys=True).encode(), np.uint8), WIDTH)
    data = [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]
    return ServerResponse(body={"object": "list", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}})


def run(workspace, server, **sections):
    model = sections.pop("model", {"weights": "builtin:tiny"})
    engine = {"kind": "http", "url": server.url} | sections.pop("engine", {})
    sections = {"prompt": {"user": "{hint}"}, "answer": {"embedding": {"from": "language", "dim": 8}}} | sections
    return workspace.run_job(engine=engine, model=model, **sections)


def test_a_known_model_is_sent_the_chat_with_pictures_and_instruction(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    with ChatServer(embed) as server:
        assert run(workspace, server) == 0
    body = server.received[0].body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == "Represent the user's input."
    assert len(server.received[0].image_urls) == 1
    assert body["add_generation_prompt"] is body["add_special_tokens"] is True
    assert body["encoding_format"] == "float"
    assert "max_tokens" not in body
    rows = workspace.read_answers()
    assert all(np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert {len(row["embedding"]) for row in rows} == {8}
    assert rows[0]["tokens"]["prompt"] == 7


def test_text_for_an_unknown_model_is_the_input_alone(workspace):
    workspace.write_manifest([{"id": "a", "hint": "a red bus"}])
    model = {"weights": "", "family": "generic"}
    with ChatServer(embed) as server:
        assert run(workspace, server, model=model, engine={"model": "m"}, input={"media": []}) == 0
        answer = {"embedding": {"from": "language", "dim": 8, "instruction": "Find it"}}
        options = {"answer": answer, "allow_other_questions": True}
        assert run(workspace, server, model=model, engine={"model": "m"}, input={"media": []}, **options) == 0
    assert [received.body["input"] for received in server.received] == ["a red bus", "Find it.\na red bus"]
    assert "messages" not in server.received[0].body


def test_broken_answers_are_asked_for_again_and_refusals_are_error_rows(workspace):
    workspace.write_manifest(workspace.draw_images(2))
    replies = [ServerResponse(body={"data": []}), ServerResponse(body={"data": [{"embedding": "AAAA"}]})]

    def misbehave(received: ReceivedRequest) -> ServerResponse:
        if "r1" in received.text:
            return refuse(400, "the maximum context length is 512 tokens")
        return replies.pop() if replies else embed(received)

    with ChatServer(misbehave) as server:
        rows = [row | {"hint": row["id"]} for row in workspace.draw_images(2)]
        workspace.write_manifest(rows)
        assert run(workspace, server) == 3
    assert workspace.list_answered_ids() == ["r0"]
    assert [letter["kind"] for letter in workspace.read_dead_letters()] == ["too_long"]


def test_vectors_shorter_than_dim_are_error_rows(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    model = {"weights": "", "family": "generic"}
    with ChatServer(embed) as server:
        answer = {"embedding": {"from": "language", "dim": 300}}
        assert run(workspace, server, model=model, engine={"model": "m"}, answer=answer) == 3
    (letter,) = workspace.read_dead_letters()
    assert "the vector has 256 numbers" in letter["message"]


def test_how_states_are_pooled_is_for_the_server_to_decide(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    with ChatServer(embed) as server, pytest.raises(JobError, match=r"answer.embedding.pool: the server decides that"):
        run(workspace, server, answer={"embedding": {"from": "language", "pool": "mean"}})
