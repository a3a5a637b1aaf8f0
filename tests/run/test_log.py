"""The log of a run: lines for people, JSON for machines, and never the content of a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from threading import Thread

import pytest

from pipeline.__main__ import main
from pipeline.output.commit import CommitReceipt, FailedRow
from pipeline.retry_policy import WAIT_LOGGER
from pipeline.run import log
from pipeline.run.local import LocalRunner

pytestmark = pytest.mark.process


@pytest.fixture
def run_command(monkeypatch, capfd):
    """A function that runs a command with environment variables. Returns its exit code and its lines on stderr."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def run(words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main([str(word) for word in words])
        return code, capfd.readouterr().err.splitlines()

    return run


def test_in_a_pod_every_line_is_one_json_object_with_job_and_run(workspace, run_command):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    code, lines = run_command(["run", workspace.write_job_file(), "--local"], KUBERNETES_SERVICE_HOST="10.0.0.1")
    events = [json.loads(line) for line in lines]
    assert code == 3
    assert {event["job"] for event in events} == {"t"}
    assert len({event["run"] for event in events}) == 1
    assert all(event["time"].endswith("+00:00") for event in events)
    (failed,) = (event for event in events if event["event"] == "row_failed")
    assert (failed["row"], failed["stage"], failed["kind"]) == ("bad0", "decode", "unknown_format")
    chunks = [event for event in events if event["event"] == "chunk"]
    assert sorted((event["answered"], event["failed"]) for event in chunks) == [(1, 1), (4, 0)]


def test_the_failed_rows_of_a_chunk_whose_receipt_got_lost_are_logged(workspace, run_command, monkeypatch):
    run_chunks = LocalRunner.run_chunks

    def lose_receipts(*arguments):
        for _ in run_chunks(*arguments):
            pass
        yield from ()

    monkeypatch.setattr(LocalRunner, "run_chunks", lose_receipts)
    workspace.write_manifest(workspace.write_broken_images(2))
    code, lines = run_command(["run", workspace.write_job_file(), "--local"], VLBATCH_LOG="json")
    failed = [event for event in map(json.loads, lines) if event["event"] == "row_failed"]
    assert (code, [event["row"] for event in failed]) == (3, ["bad0", "bad1"])


def test_outside_a_pod_there_are_only_lines_for_people(workspace, run_command):
    workspace.write_manifest([*workspace.draw_images(1), *workspace.write_broken_images(1)])
    _, lines = run_command(["run", workspace.write_job_file(), "--local"])
    assert lines[0] == "t: 2 rows; 2 to do in 1 chunk"
    assert not any(line.startswith("{") for line in lines)


def test_the_reason_a_command_ends_is_logged_in_the_same_format(workspace, run_command):
    code, (line,) = run_command(["run", workspace.folder / "none.yaml"], VLBATCH_LOG="json")
    ended = json.loads(line)
    assert (code, ended["event"], ended["level"]) == (2, "ended", "error")
    assert "none.yaml: there is no such file" in ended["message"]


def test_an_unknown_log_format_is_refused(workspace, run_command):
    code, lines = run_command(["run", workspace.write_job_file(), "--local"], VLBATCH_LOG="xml")
    assert code == 2
    assert lines == ["error: VLBATCH_LOG=xml: set it to json or text, or leave it out"]


def test_lines_of_several_threads_do_not_mix(monkeypatch, capfd):
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
def test_a_closed_terminal_does_not_end_a_run_but_ends_an_export(workspace, command):
    workspace.write_manifest(workspace.draw_images(24))
    arguments = ["--local", "--set", "engine.delay_ms=20"] if command == "run" else [str(workspace.folder / "table")]
    if command == "export":
        assert workspace.run_job() == 0
        arguments += ["--rows-per-file", "1"]
    read, written = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", command, str(workspace.write_job_file()), *arguments],
        stdout=written,
        stderr=written,
    )
    os.close(read)
    os.close(written)
    assert process.wait() == (0 if command == "run" else 141)
    assert len(workspace.list_answered_ids()) == 24
    assert not (workspace.folder / "table/_SUCCESS").exists()


@pytest.mark.parametrize("stage", ["answer", "internal"])
def test_answers_are_not_logged(stage, monkeypatch, capfd):
    monkeypatch.setenv("VLBATCH_LOG", "json")
    failed_row = FailedRow("r1", stage, "invalid", "given: 4111 1111")
    log.write_commit_event(CommitReceipt("k", True, 0, 1, failed_rows=(failed_row,)))
    lines = capfd.readouterr().err
    assert json.loads(lines.splitlines()[0])["row"] == "r1"
    assert "4111" not in lines


def test_a_run_shows_waits_for_storage_and_those_of_many_threads_once():
    lines = []
    with log.show_storage_waits(lines.append):
        for attempt in (2, 2, 2, 3):
            WAIT_LOGGER.warning(f"waiting for s3://acme/out: unavailable (SlowDown), attempt {attempt} of 16 in 4 s")
    assert [line.partition("attempt ")[2] for line in lines] == ["2 of 16 in 4 s", "3 of 16 in 4 s"]
    assert WAIT_LOGGER.handlers == []
