"""Runs through an HTTP server: costs, secrets, and errors that stop a run or do not."""

from __future__ import annotations

import json
import threading

import pytest

from pipeline.__main__ import main
from pipeline.model.engines.http import client
from pipeline.retry_policy import RetryPolicy
from tests.model.engines.chat_server import ChatServer, ServerResponse, complete, refuse

pytestmark = pytest.mark.process

KEY = "sk-hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch):
    monkeypatch.setattr(client, "RETRY_POLICY", RetryPolicy(first_wait_s=0.01, longest_wait_s=0.01))
    monkeypatch.setenv("LLM_KEY", KEY)


def build_command(workspace, server, *more, **sections):
    engine = {"kind": "http", "url": server.url, "api_key": "${LLM_KEY}", "price": {"input": 2.0, "output": 10.0}}
    path = workspace.write_job_file(**{"engine": engine, **sections})
    text = path.read_text().replace("  default: seen {id}\n", "").replace("  slots: 8\n", "")
    path.write_text(text)
    return [*more[:1], str(path), *more[1:]]


def test_no_row_is_lost_to_server_errors_and_the_cost_is_reported(workspace, capsys):
    """Every second request gets an error, of all kinds in turn."""
    errors = [
        refuse(429, "slow", **{"Retry-After": "0.01"}),
        refuse(500, "oops"),
        ServerResponse(200, "<html>"),
        ServerResponse(200, "x", cut=0),
    ]
    lock, count = threading.Lock(), [0]

    def respond(received):
        with lock:
            count[0] += 1
            return errors[count[0] // 2 % len(errors)] if count[0] % 2 else complete("fine")

    workspace.write_manifest(workspace.draw_images(20))
    with ChatServer(respond) as server:
        assert main(build_command(workspace, server, "run", "--local")) == 0
    assert workspace.list_answered_ids() == sorted(f"r{number}" for number in range(20))
    assert {row["tokens"]["prompt"] for row in workspace.read_answers()} == {7}
    (path,) = (workspace.folder / "out/runs").glob("*/report.json")
    assert json.loads(path.read_text())["cost"] == pytest.approx(20 * (7 * 2.0 + 3 * 10.0) / 1e6)
    assert "cost: 0.00088" in capsys.readouterr().err
    assert main(["report", str(workspace.folder / "out"), "--to", str(workspace.folder / "page.html")]) == 0
    assert "0.00088" in (workspace.folder / "page.html").read_text()


def test_the_api_key_is_in_no_file_and_no_message(workspace, capsys):
    """Not even if the server sends it back."""
    respond = {"fine": complete("fine"), "echo": refuse(400, f"key {KEY} may not")}
    workspace.write_manifest(
        [dict(row, hint="echo" if at else "fine") for at, row in enumerate(workspace.draw_images(3))]
    )
    with ChatServer(lambda received: respond["echo" if "echo" in received.text else "fine"]) as server:
        assert main(build_command(workspace, server, "run", "--local", prompt={"user": "{hint}"})) == 3
        assert server.received[0].headers["Authorization"] == f"Bearer {KEY}"
    written = [path for path in (workspace.folder / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".json", ".parquet"}
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert {row["message"].rpartition(": ")[2] for row in workspace.read_dead_letters()} == {"key *** may not"}
    out = capsys.readouterr()
    assert KEY not in out.out + out.err


def test_a_revoked_key_stops_the_run_and_the_next_run_goes_on(workspace, capsys):
    revoked = threading.Event()

    def respond(received):
        if revoked.is_set():
            return refuse(401, "expired")
        if len(server.received) > 8:
            revoked.set()
        return complete("fine")

    workspace.write_manifest(workspace.draw_images(20))
    with ChatServer(respond) as server:
        assert main(build_command(workspace, server, "run", "--local")) == 2
        assert "engine.api_key: " in capsys.readouterr().err
        before = set(workspace.list_answered_ids())
        assert 4 <= len(before) < 20
        revoked.clear()
        requests_before = len(server.received)
        server.respond = lambda received: complete("fine")
        assert main(build_command(workspace, server, "run", "--local")) == 0
        assert len(server.received) - requests_before == 20 - len(before)
    assert workspace.list_answered_ids() == sorted(f"r{number}" for number in range(20))
    assert workspace.read_dead_letters() == []


def test_a_plan_shows_the_price(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(4))
    with ChatServer() as server:
        assert main(build_command(workspace, server, "plan", "--answer-tokens", "100000")) == 0
        assert server.received == []
    out = capsys.readouterr().out
    assert "cost            4.0" in out
    assert "GPU hours" not in out


def test_boxes_use_the_coordinates_that_the_job_declares(workspace):
    answer = complete('{"boxes": [{"bbox_2d": [0, 0, 500, 1000], "label": "all"}]}')
    workspace.write_manifest(workspace.draw_images(1))
    more = {"answer": {"schema": "boxes"}}
    with ChatServer(lambda received: answer) as server:
        path = build_command(workspace, server, "run", "--local", "--set", "engine.coordinates=thousandths", **more)
        assert main(path) == 0
    (row,) = workspace.read_answers()
    assert row["answer"]["boxes"][0]["bbox_2d"] == [0, 0, 20, 30]
