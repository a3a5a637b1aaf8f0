"""What a run logs: lines for people, JSON where a machine reads, and never what a row holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from threading import Thread

import pytest

from pipeline.__main__ import main
from pipeline.run import log
from pipeline.types import Failure, Item


@pytest.fixture
def told(monkeypatch, capfd):
    """A function: what a command says with these variables, and its exit code."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def tell(words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main([str(word) for word in words])
        return code, capfd.readouterr().err.splitlines()

    return tell


def test_in_a_pod_every_line_is_one_json_object_with_job_and_run(workspace, told):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    code, lines = told(["run", workspace.write_job_file(), "--local"], KUBERNETES_SERVICE_HOST="10.0.0.1")
    events = [json.loads(line) for line in lines]
    assert code == 3
    assert {event["job"] for event in events} == {"t"}
    assert len({event["run"] for event in events}) == 1
    assert all(event["time"].endswith("+00:00") for event in events)
    (failed,) = (event for event in events if event["event"] == "row_failed")
    assert (failed["row"], failed["stage"], failed["kind"]) == ("bad0", "decode", "unknown_format")
    chunks = [event for event in events if event["event"] == "chunk"]
    assert sorted((event["answered"], event["failed"]) for event in chunks) == [(1, 1), (4, 0)]


def test_elsewhere_there_are_only_lines_for_people(workspace, told):
    workspace.write_manifest([*workspace.draw_images(1), *workspace.write_broken_images(1)])
    _, lines = told(["run", workspace.write_job_file(), "--local"])
    assert lines[0] == "t: 2 rows; 2 to do in 1 chunk"
    assert not any(line.startswith("{") for line in lines)


def test_what_stops_a_command_is_logged_in_the_same_form(workspace, told):
    code, (line,) = told(["run", workspace.folder / "none.yaml"], VLBATCH_LOG="json")
    ended = json.loads(line)
    assert (code, ended["event"], ended["level"]) == (2, "ended", "error")
    assert "none.yaml: there is no such file" in ended["message"]


def test_a_form_that_is_none_is_refused(workspace, told):
    code, lines = told(["run", workspace.write_job_file(), "--local"], VLBATCH_LOG="xml")
    assert code == 2
    assert lines == ["error: VLBATCH_LOG=xml: set it to json or text, or leave it out"]


def test_lines_of_several_threads_do_not_run_into_each_other(monkeypatch, capfd):
    monkeypatch.setenv("VLBATCH_LOG", "json")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            Thread(target=lambda: [log.write_event("row_failed", row="r1") for _ in range(2000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    lines = capfd.readouterr().err.splitlines()
    assert {json.loads(line)["row"] for line in lines} == {"r1"}
    assert len(lines) == 8000


@pytest.mark.parametrize("command", ["run", "export"])
def test_who_no_longer_reads_ends_no_run_and_is_told_that_an_export_is_not_whole(workspace, command):
    workspace.write_manifest(workspace.draw_images(24))
    words = ["--local", "--set", "engine.delay_ms=20"] if command == "run" else [str(workspace.folder / "table")]
    if command == "export":
        assert workspace.run_job() == 0
        words += ["--rows-per-file", "1"]
    read, written = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", command, str(workspace.write_job_file()), *words],
        stdout=written,
        stderr=written,
    )
    os.close(read)
    os.close(written)
    assert process.wait() == (0 if command == "run" else 141)
    assert len(workspace.list_answered_ids()) == 24
    assert not (workspace.folder / "table/_SUCCESS").exists()


@pytest.mark.parametrize("stage", ["answer", "internal"])
def test_what_a_model_said_is_not_logged(stage, monkeypatch, capfd):
    monkeypatch.setenv("VLBATCH_LOG", "json")
    log.write_failure_events(
        [(Item("r1", "q", ()), Failure("r1", stage, "invalid", "given: 4111 1111", text="4111 1111"))]
    )
    said = capfd.readouterr().err
    assert json.loads(said)["row"] == "r1"
    assert "4111" not in said
