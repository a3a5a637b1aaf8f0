"""Runs in one process, without Ray."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from threading import Thread

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError, OutputError, StoppedError
from pipeline.output.commit import commit_chunk
from pipeline.output.store import OutputStore
from pipeline.retry_policy import FIRST_CONTACT_ATTEMPTS
from pipeline.run import local

pytestmark = pytest.mark.process


def test_every_row_is_answered_or_a_typed_error(workspace):
    workspace.write_manifest(
        [
            *workspace.draw_images(6),
            *workspace.write_broken_images(1),
            {"id": "gone", "image": "pics/gone.png", "hint": "h"},
        ]
    )
    assert workspace.run_job() == 3
    assert [(row["id"], row["text"], row["hint"]) for row in workspace.read_answers()] == [
        (f"r{n}", f"seen r{n}", "h") for n in range(6)
    ]
    assert [(row["id"], row["stage"], row["hint"]) for row in workspace.read_dead_letters()] == [
        ("bad0", "decode", "h"),
        ("gone", "fetch", "h"),
    ]
    assert all(row["kind"] and row["message"] for row in workspace.read_dead_letters())


def test_the_prompt_is_filled_with_the_columns_of_the_row(workspace):
    workspace.write_manifest(
        [*workspace.draw_images(1), *[{**row, "hint": "{id}"} for row in workspace.draw_images(1, start=1)]]
    )
    workspace.run_job(prompt={"system": "You see {hint}.", "user": "What is {hint}?"}, engine={"default": "{prompt}"})
    assert [row["text"] for row in workspace.read_answers()] == [
        "You see h.\nWhat is h?",
        "You see {id}.\nWhat is {id}?",
    ]


def test_a_run_that_answers_every_row_exits_with_0(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2"]


def test_a_second_run_does_nothing_and_remembers_the_failures(workspace):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    assert workspace.run_job() == 3
    before = workspace.list_parts()
    assert workspace.run_job() == 3
    assert workspace.messages[0] == "t: 6 rows, 6 done before; 0 to do in 0 chunks"
    dead_letters, next_command = workspace.messages[-2:]
    assert dead_letters.startswith("dead letters of earlier runs: ")
    assert "pipeline status " in dead_letters
    assert "pipeline report " in next_command
    assert workspace.list_parts() == before
    assert len(workspace.read_dead_letters()) == 1


def test_answers_that_were_cut_off_are_counted_at_the_end(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job(engine={"kind": "torch"}, answer={"max_new_tokens": 1})
    assert (
        "cut off by answer.max_new_tokens (1): 3 of these answers, whose column finish says length"
        in workspace.messages
    )


@pytest.fixture
def listed(monkeypatch):
    """Counts the listings of a run by the first letters of the folder."""
    collect_objects, counter = OutputStore.collect_objects, Counter()
    monkeypatch.setattr(
        OutputStore,
        "collect_objects",
        lambda store, name, *rest: (counter.update([name[:4]]), collect_objects(store, name, *rest))[1],
    )
    return counter


def test_a_run_lists_its_parts_once(workspace, listed):
    """Each listing of ten million parts takes minutes."""
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    for _ in ("a run that answers all rows", "a run with nothing to do"):
        listed.clear()
        assert workspace.run_job() == 3
        assert (listed["data"], listed["erro"]) == (1, 2)


def test_a_run_writes_a_report_of_its_result(workspace):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(1)])
    workspace.run_job()
    (path,) = (workspace.folder / "out/runs").glob("*/report.json")
    report = json.loads(path.read_text())
    assert (report["status"], report["rows"], report["answered"], report["failed"]) == ("done", 3, 2, 1)
    assert json.loads(path.with_name("job.json").read_text())["name"] == "t"


def test_a_full_run_does_not_repeat_the_rows_of_a_trial(workspace):
    workspace.write_manifest(workspace.draw_images(10))
    assert workspace.run_job(row_limit=5) == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3", "r4"]
    trial = workspace.list_parts()
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == [f"r{n}" for n in range(10)]
    assert trial.items() <= workspace.list_parts().items()
    assert "5 done before; 5 to do" in workspace.messages[0]


def test_an_id_with_two_questions_is_refused_by_name(workspace):
    rows = workspace.draw_images(6)
    workspace.write_manifest([*rows, {**rows[1], "image": "pics/5.png"}])
    with pytest.raises(JobError, match=r"id 'r1' appears twice with different questions in .*m\.parquet"):
        workspace.run_job()


def test_a_question_asked_twice_is_answered_once(workspace):
    rows = workspace.draw_images(6)
    workspace.write_manifest([*rows, rows[1], rows[5]])
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert "2 more that ask the same and share an answer" in workspace.messages[0]


def test_only_the_new_rows_of_a_rewritten_manifest_are_answered(workspace):
    rows = workspace.draw_images(9)
    workspace.write_manifest(rows)
    workspace.run_job()
    before = workspace.list_parts()
    new_rows = workspace.draw_images(2, start=20)
    workspace.write_manifest([new_rows[0], *reversed(rows), new_rows[1]])
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == sorted([f"r{n}" for n in range(9)] + ["r20", "r21"])
    assert before.items() <= workspace.list_parts().items()
    assert workspace.messages[0].startswith("t: 11 rows, 9 done before; 2 to do")


def test_another_question_in_the_same_output_is_refused_with_the_difference(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job()
    with pytest.raises(OutputError, match=r'was "What is it\?", is "What colour is it\?"'):
        workspace.run_job(prompt={"user": "What colour is it?"})


def test_another_question_can_be_added_to_the_same_output(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job()
    assert workspace.run_job(prompt={"user": "What colour is it?"}, allow_other_questions=True) == 0
    assert workspace.list_answered_ids() == ["r0", "r0", "r1", "r1", "r2", "r2"]
    folders = {path.name for path in (workspace.folder / "out/data").iterdir()}
    assert folders == {f"fp={row['fingerprint']}" for row in workspace.read_answers()}
    assert len(folders) == 2


def test_a_part_without_rows_has_no_row_group_and_does_not_disturb_readers(workspace):
    workspace.write_manifest([*workspace.draw_images(4), *workspace.write_broken_images(4)])
    assert workspace.run_job() == 3
    files = [pq.ParquetFile(path) for path in (workspace.folder / "out/data").glob("fp=*/*.parquet")]
    assert sorted((file.num_row_groups, file.metadata.num_rows) for file in files) == [(0, 0), (1, 4)]
    assert files[0].schema_arrow.equals(files[1].schema_arrow)
    assert len(pd.read_parquet(workspace.folder / "out/data")) == 4


def test_an_object_is_created_once(workspace):
    store = OutputStore(str(workspace.folder / "out"))
    assert store.create_object("data/a.json", b"first")
    assert not store.create_object("data/a.json", b"second")
    assert store.read_object("data/a.json") == b"first"
    assert store.list_names("data") == {"a.json"}


def test_a_killed_write_leaves_nothing_that_a_reader_or_the_next_run_sees(workspace):
    workspace.write_manifest(workspace.draw_images(6))
    job = workspace.write_job_file()
    program = (
        "import os, signal, sys\n"
        "link = os.link\n"
        "def die(temp_file, path):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if '/data/' in path else link(temp_file, path)\n"
        "os.link = die\n"
        "from pipeline.__main__ import main\n"
        f"main(['run', {str(job)!r}, '--local'])\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    files = [name for _, _, names in os.walk(workspace.folder / "out/data") for name in names]
    assert len(files) == 1  # the file that was being written
    assert workspace.list_parts() == {}
    assert ds.dataset(workspace.folder / "out/data").files == []
    assert workspace.run_job() == 0
    assert ds.dataset(workspace.folder / "out/data").count_rows() == 6


def test_a_run_with_too_many_failures_stops_and_says_why(workspace):
    workspace.write_manifest([*workspace.write_broken_images(160), *workspace.draw_images(4)])
    with pytest.raises(StoppedError, match=r"(?s)100 of the last 100 rows failed.*0\.05.*100  decode/"):
        workspace.run_job(limits={"error_rate": 0.05}, output={"chunk_rows": 20})
    assert len(workspace.read_dead_letters()) == 100
    (report,) = (workspace.folder / "out/runs").glob("*/report.json")
    assert json.loads(report.read_text())["status"] == "stopped"


def test_a_full_disk_stops_the_run_and_keeps_what_was_committed(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(8))
    commits, fsync = [], os.fsync

    def raise_disk_full(file):
        name = os.readlink(f"/proc/self/fd/{file}")
        commits.append("/data/" in name)
        if sum(commits) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr("pipeline.output.local_files.os.fsync", raise_disk_full)
    monkeypatch.setenv("VLBATCH_LEASE_S", "1")  # the next run waits for a lease that could not be released
    with pytest.raises(StoppedError, match=r"stopped: .*no space is left; make room .*run the same command again"):
        workspace.run_job()
    assert any("this run has no report" in line for line in workspace.messages)
    monkeypatch.setattr("pipeline.output.local_files.os.fsync", fsync)
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3"]
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == [f"r{number}" for number in range(8)]


def test_a_run_that_a_second_signal_ends_counts_its_last_commit(workspace, monkeypatch):
    commit = local.commit_slices

    def interrupt_after_second_commit(*chunk):
        receipt = commit(*chunk)
        if len(workspace.list_parts()) == 2:
            raise KeyboardInterrupt
        return receipt

    workspace.write_manifest(workspace.draw_images(12))
    monkeypatch.setattr(local, "commit_slices", interrupt_after_second_commit)
    with pytest.raises(KeyboardInterrupt):
        workspace.run_job()
    (path,) = (workspace.folder / "out/runs").glob("*/report.json")
    report = json.loads(path.read_text())
    assert (report["status"], report["answered"], report["missing"]) == ("stopped", 8, 4)


def test_answers_are_announced_where_there_are_some(workspace):
    workspace.write_manifest(workspace.write_broken_images(2))
    assert workspace.run_job() == 3
    assert not [line for line in workspace.messages if line.startswith("answers:")]


def test_a_disk_that_replaces_files_is_refused(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(1))
    monkeypatch.setattr("pipeline.output.local_files.os.link", shutil.copyfile)
    with pytest.raises(OutputError, match="this store replaces objects that must only be created"):
        workspace.run_job()
    assert not (workspace.folder / "out/runs").exists()


@pytest.fixture
def signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("signals")
def test_before_anything_has_started_a_broken_store_is_tried_only_a_few_times(workspace, monkeypatch, short_waits):
    attempts = []

    def fail(file):
        attempts.append(file)
        raise OSError(errno.EIO, "stumbled")

    monkeypatch.setattr("pipeline.output.local_files.os.fsync", fail)
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(OutputError, match=rf"\(stumbled, after {FIRST_CONTACT_ATTEMPTS} attempts\)"):
        workspace.run_job()
    assert len(attempts) == FIRST_CONTACT_ATTEMPTS


def test_a_run_in_a_thread_leaves_the_signals_to_the_program(workspace):
    """Airflow and Dagster call a run so."""
    workspace.write_manifest(workspace.draw_images(5))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    codes = []
    thread = Thread(target=lambda: codes.append(workspace.run_job()))
    thread.start()
    thread.join()
    assert codes == [0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_an_output_in_the_package_of_a_ray_job_is_refused(workspace, monkeypatch, capsys):
    package = workspace.folder / "session_1/runtime_resources/working_dir_files/_ray_pkg_5f2a"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    workspace.write_manifest(workspace.draw_images(1))
    job = str(workspace.write_job_file(output={"path": "out"}))
    assert main(["run", job, "--local"]) == 2
    assert f"output.path: {package}/out is in the working directory of this Ray job" in capsys.readouterr().err
    assert main(["run", job, "--local", f"--set=output.path={workspace.folder}/out"]) == 0


def test_too_many_failures_exit_with_4_and_an_invalid_job_with_2(workspace, capsys):
    workspace.write_manifest(workspace.write_broken_images(120))
    job = str(workspace.write_job_file(limits={"error_rate": 0.1}, output={"chunk_rows": 40}))
    assert main(["run", job, "--local"]) == 4
    assert "stopped: 120 of the last 120 rows failed" in capsys.readouterr().err
    assert main(["run", job, "--local", "--set", "input.manifest=nowhere.parquet"]) == 2
    assert "there is no nowhere.parquet" in capsys.readouterr().err


def test_a_chunk_that_another_worker_committed_counts_with_its_failures(workspace, monkeypatch):
    """A worker dies between its commit and its receipt; the next one finds the chunk committed."""
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(1)])
    monkeypatch.setattr(local, "commit_chunk", lambda *chunk: (commit_chunk(*chunk), commit_chunk(*chunk))[1])
    assert workspace.run_job() == 3
    assert workspace.messages[1].startswith("2 answered, 1 failed")
    assert workspace.messages[2].startswith("       1  decode/unknown_format, such as bad0: ")


def test_only_one_manifest_file_is_open_at_a_time(workspace, monkeypatch):
    (workspace.folder / "m").mkdir()
    for number, row in enumerate(workspace.draw_images(20)):
        table = pa.Table.from_pylist([{**row, "image": str(workspace.folder / row["image"])}])
        pq.write_table(table, workspace.folder / f"m/{number:02}.parquet")
    counts, commit = [], local.commit_slices
    monkeypatch.setattr(
        local, "commit_slices", lambda *chunk: (counts.append(psutil.Process().num_fds()), commit(*chunk))[1]
    )
    assert workspace.run_job(input={"manifest": str(workspace.folder / "m"), "roots": [str(workspace.folder)]}) == 0
    assert len(counts) == 20
    assert counts[-1] < counts[0] + 10


def test_a_folder_of_pictures_is_a_manifest(workspace):
    workspace.draw_images(5)
    workspace.write_broken_images(1)
    pictures = {"manifest": str(workspace.folder / "pics"), "id": None, "media": [], "keep": []}
    assert workspace.run_job(input=pictures) == 3
    assert workspace.list_answered_ids() == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [row["id"] for row in workspace.read_dead_letters()] == ["bad0.png"]


def test_a_folder_of_pictures_may_hold_the_output_of_the_job(workspace):
    workspace.draw_images(2)
    (workspace.folder / "pics/._0.png").write_bytes(b"a file that macOS leaves beside a picture")
    (workspace.folder / "pics/photo.HEIF").write_bytes(b"no picture")
    places = {
        "input": {"manifest": str(workspace.folder / "pics"), "id": None, "media": [], "keep": []},
        "output": {"path": str(workspace.folder / "pics/out")},
    }
    for count in (3, 4):
        workspace.run_job(**places)
        assert [line for line in workspace.messages if line.startswith(f"t: {count} rows")]
        workspace.draw_images(1, start=2)
    assert workspace.list_answered_ids("pics/out") == ["0.png", "1.png", "2.png"]


def test_a_jsonl_manifest_is_read_by_lines(workspace):
    lines = [json.dumps(row) for row in workspace.draw_images(6)]
    (workspace.folder / "m.jsonl").write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n")
    assert workspace.run_job(input={"manifest": str(workspace.folder / "m.jsonl")}) == 0
    assert [(row["id"], row["hint"]) for row in workspace.read_answers()] == [(f"r{n}", "h") for n in range(6)]


def test_pictures_in_a_column_need_an_id(workspace):
    rows = [{**row, "image": (workspace.folder / row["image"]).read_bytes()} for row in workspace.draw_images(5)]
    workspace.write_manifest(rows)
    with pytest.raises(JobError, match=r"column image holds bytes, so its rows need ids: set input\.id"):
        workspace.run_job(input={"id": None})
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3", "r4"]
