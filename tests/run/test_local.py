"""What a run means, in one process: no Ray."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError, OutputError, StoppedError
from pipeline.output.commit import commit_chunk
from pipeline.output.store import OutputStore
from pipeline.run import local


def test_every_row_is_answered_or_a_typed_error(desk):
    desk.manifest([*desk.draw(6), *desk.spoil(1), {"id": "gone", "image": "pics/gone.png", "hint": "h"}])
    assert desk.run() == 3
    assert [(row["id"], row["text"], row["hint"]) for row in desk.data()] == [
        (f"r{n}", f"seen r{n}", "h") for n in range(6)
    ]
    assert [(row["id"], row["stage"], row["hint"]) for row in desk.errors()] == [
        ("bad0", "decode", "h"),
        ("gone", "fetch", "h"),
    ]
    assert all(row["kind"] and row["message"] for row in desk.errors())


def test_the_question_of_the_job_is_asked_with_the_row_in_it(desk):
    desk.manifest([*desk.draw(1), *[{**row, "hint": "{id}"} for row in desk.draw(1, start=1)]])
    desk.run(prompt={"system": "You see {hint}.", "user": "What is {hint}?"}, engine={"default": "{prompt}"})
    assert [row["text"] for row in desk.data()] == ["You see h.\nWhat is h?", "You see {id}.\nWhat is {id}?"]


def test_a_run_in_which_all_is_answered_exits_with_0(desk):
    desk.manifest(desk.draw(3))
    assert desk.run() == 0
    assert desk.ids() == ["r0", "r1", "r2"]


def test_a_second_run_does_nothing_and_remembers_the_failures(desk):
    desk.manifest([*desk.draw(5), *desk.spoil(1)])
    assert desk.run() == 3
    before = desk.parts()
    assert desk.run() == 3
    assert desk.said[0] == "t: 6 rows, 6 done before; 0 to do in 0 chunks"
    assert desk.said[-1].startswith("dead letters of earlier runs: ")
    assert f"python -m pipeline status {desk.folder}/out says why" in desk.said[-1]
    assert desk.parts() == before
    assert len(desk.errors()) == 1


def test_answers_that_were_cut_off_are_counted_at_the_end(desk):
    desk.manifest(desk.draw(3))
    desk.run(engine={"kind": "torch"}, answer={"max_new_tokens": 1})
    assert "cut off by answer.max_new_tokens (1): 3 of these answers, whose column finish says length" in desk.said


def test_a_run_with_nothing_to_do_does_not_list_its_output_over_and_over(desk, monkeypatch):
    """Each listing of a million parts takes a minute."""
    desk.manifest([*desk.draw(5), *desk.spoil(1)])
    assert desk.run() == 3
    listing, listed = OutputStore.list_objects, Counter()
    monkeypatch.setattr(
        OutputStore, "listing", lambda store, name: (listed.update([name[:4]]), listing(store, name))[1]
    )
    assert desk.run() == 3
    assert listed["data"] == 3
    assert listed["erro"] == 2


def test_a_run_is_reported_with_what_came_of_it(desk):
    desk.manifest([*desk.draw(2), *desk.spoil(1)])
    desk.run()
    (path,) = (desk.folder / "out/runs").glob("*/report.json")
    report = json.loads(path.read_text())
    assert (report["status"], report["rows"], report["answered"], report["failed"]) == ("done", 3, 2, 1)
    assert json.loads(path.with_name("job.json").read_text())["name"] == "t"


def test_a_trial_of_five_rows_is_not_done_again_by_the_whole_run(desk):
    desk.manifest(desk.draw(10))
    assert desk.run(limit=5) == 0
    assert desk.ids() == ["r0", "r1", "r2", "r3", "r4"]
    trial = desk.parts()
    assert desk.run() == 0
    assert desk.ids() == [f"r{n}" for n in range(10)]
    assert trial.items() <= desk.parts().items()
    assert "5 done before; 5 to do" in desk.said[0]


def test_an_id_that_asks_two_things_is_refused_by_name(desk):
    rows = desk.draw(6)
    desk.manifest([*rows, {**rows[1], "image": "pics/5.png"}])
    with pytest.raises(JobError, match=r"id 'r1' stands twice with different questions in .*m\.parquet"):
        desk.run()


def test_a_question_asked_twice_is_answered_once(desk):
    rows = desk.draw(6)
    desk.manifest([*rows, rows[1], rows[5]])
    assert desk.run() == 0
    assert desk.ids() == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert "2 asked twice and answered once" in desk.said[0]


def test_of_a_rewritten_manifest_only_the_new_rows_are_answered(desk):
    rows = desk.draw(9)
    desk.manifest(rows)
    desk.run()
    before = desk.parts()
    new = desk.draw(2, start=20)
    desk.manifest([new[0], *reversed(rows), new[1]])
    assert desk.run() == 0
    assert desk.ids() == sorted([f"r{n}" for n in range(9)] + ["r20", "r21"])
    assert before.items() <= desk.parts().items()
    assert desk.said[0].startswith("t: 11 rows, 9 done before; 2 to do")


def test_another_question_in_the_same_output_is_refused_with_the_difference(desk):
    desk.manifest(desk.draw(3))
    desk.run()
    with pytest.raises(OutputError, match=r'was "What is it\?", is "What colour is it\?"'):
        desk.run(prompt={"user": "What colour is it?"})


def test_another_question_is_added_beside_the_first_when_that_is_asked_for(desk):
    desk.manifest(desk.draw(3))
    desk.run()
    assert desk.run(prompt={"user": "What colour is it?"}, add=True) == 0
    assert desk.ids() == ["r0", "r0", "r1", "r1", "r2", "r2"]
    folders = {path.name for path in (desk.folder / "out/data").iterdir()}
    assert folders == {f"fp={row['fingerprint']}" for row in desk.data()}
    assert len(folders) == 2


def test_an_object_is_created_once(desk):
    store = OutputStore(str(desk.folder / "out"))
    assert store.create_object("data/a.json", b"first")
    assert not store.create_object("data/a.json", b"second")
    assert store.read_object("data/a.json") == b"first"
    assert store.list_names("data") == {"a.json"}


def test_a_write_that_is_killed_leaves_nothing_that_a_reader_or_the_next_run_sees(desk):
    desk.manifest(desk.draw(6))
    job = desk.yaml()
    program = (
        "import os, signal, sys\n"
        "link = os.link\n"
        "def die(beside, path):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if '/data/' in path else link(beside, path)\n"
        "os.link = die\n"
        "from pipeline.__main__ import main\n"
        f"main(['run', {str(job)!r}, '--local'])\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    left = [name for _, _, names in os.walk(desk.folder / "out/data") for name in names]
    assert len(left) == 1  # what was being written when the process died
    assert desk.parts() == {}
    assert ds.dataset(desk.folder / "out/data").files == []
    assert desk.run() == 0
    assert ds.dataset(desk.folder / "out/data").count_rows() == 6


def test_a_run_in_which_too_much_fails_stops_and_says_why(desk):
    desk.manifest([*desk.spoil(160), *desk.draw(4)])
    with pytest.raises(StoppedError, match=r"(?s)100 of the last 100 rows failed.*0\.05.*100  decode/"):
        desk.run(limits={"error_rate": 0.05}, output={"chunk_rows": 20})
    assert len(desk.errors()) == 100
    (report,) = (desk.folder / "out/runs").glob("*/report.json")
    assert json.loads(report.read_text())["status"] == "stopped"


def test_a_disk_that_fills_up_stops_the_run_and_what_was_committed_stays(desk, monkeypatch):
    desk.manifest(desk.draw(8))
    commits, fsync = [], os.fsync

    def full(file):
        name = os.readlink(f"/proc/self/fd/{file}")
        commits.append("/data/" in name)
        if sum(commits) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr("pipeline.output.store.os.fsync", full)
    monkeypatch.setenv("VLBATCH_LEASE_S", "1")  # a lease that cannot be given back is waited for, in the same process
    with pytest.raises(StoppedError, match=r"stopped: .*no space is left; make room .*the same command goes on"):
        desk.run()
    assert any("this run has no report" in line for line in desk.said)
    monkeypatch.setattr("pipeline.output.store.os.fsync", fsync)
    assert desk.ids() == ["r0", "r1", "r2", "r3"]
    assert desk.run() == 0
    assert desk.ids() == [f"r{number}" for number in range(8)]


@pytest.fixture
def signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("signals")
def test_the_command_exits_with_4_when_too_much_fails_and_with_2_for_a_job_that_cannot_run(desk, capsys):
    desk.manifest(desk.spoil(120))
    job = str(desk.yaml(limits={"error_rate": 0.1}, output={"chunk_rows": 40}))
    assert main(["run", job, "--local"]) == 4
    assert "stopped: 120 of the last 120 rows failed" in capsys.readouterr().err
    assert main(["run", job, "--local", "--set", "input.manifest=nowhere.parquet"]) == 2
    assert "there is no nowhere.parquet" in capsys.readouterr().err


def test_what_another_has_committed_counts_with_its_reasons(desk, monkeypatch):
    """As where a worker dies between its commit and its word of it, and the next one finds the chunk done."""
    desk.manifest([*desk.draw(2), *desk.spoil(1)])
    monkeypatch.setattr(local, "write", lambda *chunk: (commit_chunk(*chunk), commit_chunk(*chunk))[1])
    assert desk.run() == 3
    assert desk.said[1].startswith("2 answered, 1 failed")
    assert desk.said[2] == "       1  decode/unknown_format"


def test_of_a_manifest_of_many_files_one_is_open_at_a_time(desk, monkeypatch):
    (desk.folder / "m").mkdir()
    for number, row in enumerate(desk.draw(20)):
        one = pa.Table.from_pylist([{**row, "image": str(desk.folder / row["image"])}])
        pq.write_table(one, desk.folder / f"m/{number:02}.parquet")
    counts, commit = [], local.commit_outcomes
    monkeypatch.setattr(local, "commit", lambda *chunk: (counts.append(psutil.Process().num_fds()), commit(*chunk))[1])
    assert desk.run(input={"manifest": str(desk.folder / "m"), "roots": [str(desk.folder)]}) == 0
    assert len(counts) == 20
    assert counts[-1] < counts[0] + 10


def test_a_folder_of_pictures_is_a_manifest(desk):
    desk.draw(5)
    desk.spoil(1)
    pictures = {"manifest": str(desk.folder / "pics"), "id": None, "media": [], "keep": []}
    assert desk.run(input=pictures) == 3
    assert desk.ids() == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [row["id"] for row in desk.errors()] == ["bad0.png"]


def test_a_folder_of_pictures_may_hold_the_output_of_the_job(desk):
    desk.draw(2)
    (desk.folder / "pics/._0.png").write_bytes(b"what macOS leaves beside a picture")
    (desk.folder / "pics/photo.HEIF").write_bytes(b"no picture")
    places = {
        "input": {"manifest": str(desk.folder / "pics"), "id": None, "media": [], "keep": []},
        "output": {"path": str(desk.folder / "pics/out")},
    }
    for count in (3, 4):
        desk.run(**places)
        assert desk.said[0].startswith(f"t: {count} rows")
        desk.draw(1, start=2)
    assert desk.ids("pics/out") == ["0.png", "1.png", "2.png"]


def test_a_jsonl_manifest_is_read_by_lines(desk):
    lines = [json.dumps(row) for row in desk.draw(6)]
    (desk.folder / "m.jsonl").write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n")
    assert desk.run(input={"manifest": str(desk.folder / "m.jsonl")}) == 0
    assert [(row["id"], row["hint"]) for row in desk.data()] == [(f"r{n}", "h") for n in range(6)]


def test_pictures_in_a_column_need_an_id(desk):
    rows = [{**row, "image": (desk.folder / row["image"]).read_bytes()} for row in desk.draw(5)]
    desk.manifest(rows)
    with pytest.raises(JobError, match=r"column image holds bytes, so rows need names: set input\.id"):
        desk.run(input={"id": None})
    assert desk.run() == 0
    assert desk.ids() == ["r0", "r1", "r2", "r3", "r4"]


def test_a_kept_column_of_another_type_in_a_later_file_is_told_with_the_file(desk):
    rows = desk.draw(2)
    desk.manifest(rows[:1])
    (desk.folder / "later.jsonl").write_text(json.dumps({**rows[1], "hint": "h"}) + "\n")
    (desk.folder / "first.jsonl").write_text(json.dumps({**rows[0], "hint": 1}) + "\n")
    with pytest.raises(JobError, match=r"later\.jsonl: column hint \(input\.keep\) is int64 in the first file.*'h'"):
        desk.run(input={"manifest": [str(desk.folder / "first.jsonl"), str(desk.folder / "later.jsonl")]})
