"""Whole runs through a server: what it costs, what is kept of its key, what stops it and what does not."""

from __future__ import annotations

import json
import threading

import pytest

from pipeline.__main__ import main
from pipeline.model.engines.http import client
from tests.model.engines.chat_server import Act, Talker, said, wrong

KEY = "sk-hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "wait_s", lambda failures, chance: 0.01)
    monkeypatch.setenv("LLM_KEY", KEY)


def command(desk, talker, *more, **sections):
    engine = {"kind": "http", "url": talker.url, "api_key": "${LLM_KEY}", "price": {"input": 2.0, "output": 10.0}}
    path = desk.yaml(**{"engine": engine, **sections})
    text = path.read_text().replace("  default: seen {id}\n", "").replace("  slots: 8\n", "")
    path.write_text(text)
    return [*more[:1], str(path), *more[1:]]


def test_no_row_is_lost_to_a_server_in_trouble_and_the_cost_is_told(desk, capsys):
    """Every kind of trouble, in turn, at half of the requests."""
    troubles = [
        wrong(429, "slow", **{"Retry-After": "0.01"}),
        wrong(500, "oops"),
        Act(200, "<html>"),
        Act(200, "x", cut=0),
    ]
    lock, count = threading.Lock(), [0]

    def script(heard):
        with lock:
            count[0] += 1
            return troubles[count[0] // 2 % len(troubles)] if count[0] % 2 else said("fine")

    desk.manifest(desk.draw(20))
    with Talker(script) as talker:
        assert main(command(desk, talker, "run", "--local")) == 0
    assert desk.ids() == sorted(f"r{number}" for number in range(20))
    assert {row["tokens"]["prompt"] for row in desk.data()} == {7}
    (path,) = (desk.folder / "out/runs").glob("*/report.json")
    assert json.loads(path.read_text())["cost"] == pytest.approx(20 * (7 * 2.0 + 3 * 10.0) / 1e6)
    assert "cost: 0.00088" in capsys.readouterr().err
    assert main(["report", str(desk.folder / "out"), "--to", str(desk.folder / "page.html")]) == 0
    assert "0.00088" in (desk.folder / "page.html").read_text()


def test_the_key_is_in_nothing_that_is_written_or_said(desk, capsys):
    """Not even where the server sends it back."""
    script = {"fine": said("fine"), "echo": wrong(400, f"key {KEY} may not")}
    desk.manifest([dict(row, hint="echo" if at else "fine") for at, row in enumerate(desk.draw(3))])
    with Talker(lambda heard: script["echo" if "echo" in heard.text else "fine"]) as talker:
        assert main(command(desk, talker, "run", "--local", prompt={"user": "{hint}"})) == 3
        assert talker.heard[0].headers["Authorization"] == f"Bearer {KEY}"
    written = [path for path in (desk.folder / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".json", ".parquet"}
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert {row["message"].rpartition(": ")[2] for row in desk.errors()} == {"key *** may not"}
    out = capsys.readouterr()
    assert KEY not in out.out + out.err


def test_a_key_that_is_taken_back_stops_the_run_and_the_next_goes_on_from_there(desk, capsys):
    gone = threading.Event()

    def script(heard):
        if gone.is_set():
            return wrong(401, "expired")
        if len(talker.heard) > 8:
            gone.set()
        return said("fine")

    desk.manifest(desk.draw(20))
    with Talker(script) as talker:
        assert main(command(desk, talker, "run", "--local")) == 2
        assert "engine.api_key: " in capsys.readouterr().err
        before = set(desk.ids())
        assert 4 <= len(before) < 20
        gone.clear()
        asked = len(talker.heard)
        talker.script = lambda heard: said("fine")
        assert main(command(desk, talker, "run", "--local")) == 0
        assert len(talker.heard) - asked == 20 - len(before)
    assert desk.ids() == sorted(f"r{number}" for number in range(20))
    assert desk.errors() == []


def test_a_plan_tells_the_price(desk, capsys):
    desk.manifest(desk.draw(4))
    with Talker() as talker:
        assert main(command(desk, talker, "plan", "--answer-tokens", "100000")) == 0
        assert talker.heard == []
    out = capsys.readouterr().out
    assert "cost            4.0" in out
    assert "GPU hours" not in out


def test_boxes_are_read_as_the_job_says_the_server_writes_them(desk):
    answer = said('{"boxes": [{"bbox_2d": [0, 0, 500, 1000], "label": "all"}]}')
    desk.manifest(desk.draw(1))
    more = {"answer": {"schema": "boxes"}}
    with Talker(lambda heard: answer) as talker:
        path = command(desk, talker, "run", "--local", "--set", "engine.coordinates=thousandths", **more)
        assert main(path) == 0
    (row,) = desk.data()
    assert row["answer"]["boxes"][0]["bbox_2d"] == [0, 0, 20, 30]
