"""The status of an output is read without its manifest."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from datetime import datetime, timedelta
from itertools import count

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.inspect.output_reader import open_output_reader
from pipeline.inspect.status import format_run, format_status, read_status
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import driver, preflight
from pipeline.run.lease import Lease

pytestmark = pytest.mark.process


def describe(workspace):
    return "\n".join(format_status(read_status(str(workspace.folder / "out"))))


def test_status_counts_answered_failed_and_left_rows(workspace):
    workspace.write_manifest(
        [
            *workspace.draw_images(9),
            *workspace.write_broken_images(2),
            {"id": "gone", "image": "pics/gone.png", "hint": "h"},
        ]
    )
    workspace.run_job()
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.rows, status.left, status.parts) == (9, 12, 0, 3)
    assert status.wrong == {"decode/unknown_format": 2, "fetch/not_found": 1}
    text = "\n".join(format_status(status))
    assert "answered  9 rows in 3 parts" in text
    assert "2  decode/unknown_format: file://" in text
    assert "gone.png: no such file" in text
    assert "running   no" in text
    assert " done " in text


def test_a_job_stands_for_its_output(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(2))
    job_file, output = str(workspace.write_job_file()), str(workspace.folder / "out")
    workspace.run_job()
    capsys.readouterr()
    texts = []
    for named in (job_file, output):
        assert main(["status", named]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "answered  2 rows" in texts[0]


@pytest.mark.parametrize(("status", "says_so"), [("done", True), ("running", False), ("stopped", False)])
def test_only_a_run_that_is_done_had_nothing_to_do(status, says_so):
    report = {"run": "20261129T211922-70f31", "status": status, "answered": 0, "failed": 0, "seconds": 2.0}
    assert ("nothing to do" in format_run(report)) is says_so


def test_rows_that_a_stopped_run_left_are_counted(workspace):
    workspace.write_manifest(workspace.draw_images(12))
    workspace.run_job()
    one = min((workspace.folder / "out/data").glob("fp=*/*.parquet"))
    one.unlink()
    status = read_status(str(workspace.folder / "out"))
    assert status.left == 4
    assert "give the same run command again: it asks the rows that are left" in "\n".join(format_status(status))


def test_a_failed_row_that_a_rewritten_manifest_answered_counts_as_answered(workspace):
    bad = workspace.write_broken_images(2)
    workspace.write_manifest([*workspace.draw_images(6), *bad])
    assert workspace.run_job() == 3
    good = (workspace.folder / "pics/0.png").read_bytes()
    (workspace.folder / "pics/bad0.png").write_bytes(good)
    workspace.write_manifest([bad[0], *workspace.draw_images(6), bad[1]])  # other chunks: all that failed is asked anew
    assert workspace.run_job() == 3
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.wrong, status.left) == (7, {"decode/unknown_format": 1}, 0)


def test_left_rows_are_those_of_the_newest_manifest(workspace):
    workspace.write_manifest(workspace.draw_images(12))
    assert workspace.run_job() == 0
    bad = workspace.write_broken_images(1)
    workspace.write_manifest([*workspace.draw_images(11, start=20), *bad])  # as of another day
    assert workspace.run_job() == 3
    assert read_status(str(workspace.folder / "out")).left == 0
    for path in sorted((workspace.folder / "out/data").glob("fp=*/*.parquet"), key=os.path.getmtime)[-2:]:
        path.unlink()  # as if it had died before
    next((workspace.folder / "out/runs").glob(f"{max(os.listdir(workspace.folder / 'out/runs'))}/report.json")).unlink()
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.rows, status.left, status.wrong) == (16, 12, 8, {})


def test_the_newest_run_does_not_depend_on_clocks(workspace, monkeypatch):
    class Ahead(datetime):
        @classmethod
        def now(cls, zone):
            return datetime.now(zone) + timedelta(minutes=10)

    workspace.write_manifest(workspace.draw_images(4))
    with monkeypatch.context() as there:
        there.setattr(preflight, "datetime", Ahead)
        assert workspace.run_job() == 0
    workspace.write_manifest(workspace.draw_images(9, start=20))
    assert workspace.run_job() == 0
    assert read_status(str(workspace.folder / "out")).rows == 9


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_rows_that_a_dead_run_would_have_asked_again_are_left_and_not_failed(workspace, monkeypatch):
    bad = workspace.write_broken_images(2)
    workspace.write_manifest([*workspace.draw_images(6), *bad])
    assert workspace.run_job() == 3
    workspace.write_manifest([*workspace.draw_images(5), *bad])
    monkeypatch.setattr(driver, "run_plan", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        workspace.run_job()
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.rows, status.left, status.wrong) == (6, 7, 2, {})


def test_only_parts_that_may_answer_a_failed_row_are_read(workspace, monkeypatch):
    rows, bad = workspace.draw_images(12), workspace.write_broken_images(1)
    workspace.write_manifest([*bad, *rows])
    assert workspace.run_job(row_limit=2) == 3  # a trial, whose chunk the whole does not have
    assert workspace.run_job() == 3
    read, seen = Dataset.read_part, []
    monkeypatch.setattr(Dataset, "read_part", lambda dataset, *words: (seen.append(words[0]), read(dataset, *words))[1])
    assert read_status(str(workspace.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert seen == []  # the note of the chunk with the dead letter stands in its footer


def test_failed_rows_are_counted_from_notes_and_only_examples_are_read(workspace, monkeypatch):
    """Also where some were asked again, where their chunk is gone, and where a worker lost the race to commit."""
    rows, bad = workspace.draw_images(1), workspace.write_broken_images(8)
    gone = [{"id": f"gone{number}", "image": f"pics/gone{number}.png", "hint": "h"} for number in range(6)]
    path, output = str(workspace.folder / "out"), {"chunk_rows": 1}
    workspace.write_manifest([*rows, *bad[:1]])
    assert workspace.run_job(output=output) == 3
    workspace.write_manifest([*rows, *bad[1:], *gone])
    assert workspace.run_job(output=output) == 3
    (workspace.folder / "pics/gone5.png").write_bytes((workspace.folder / rows[0]["image"]).read_bytes())
    assert workspace.run_job(output=output, retry_kind="fetch") == 3
    dataset = open_output_reader(path).dataset
    letters = dataset.read_dead_letters(next(iter(dataset.list_dead_letters())))
    answered = next(part for part in dataset.list_parts() if not dataset.read_footer(part).note["failed"])
    dataset.write_dead_letters(answered, letters, lambda: None)
    letter = next(letter for letter in open_output_reader(path).read_failed_rows() if letter.stage == "decode")
    dataset.delete_dead_letters(dataset.read_footer(letter.key).note["errors"])  # as people may do
    found = Counter(f"{letter.stage}/{letter.kind}" for letter in open_output_reader(path).read_failed_rows())
    read, seen = Dataset.read_dead_letters, []
    monkeypatch.setattr(
        Dataset, "read_dead_letters", lambda dataset, *words: (seen.append(words[0]), read(dataset, *words))[1]
    )
    status = read_status(path)
    assert status.wrong == found == {"decode/unknown_format": 6, "fetch/not_found": 5}
    assert status.examples.keys() == found.keys()
    retried = 2 * 6 - 1  # generations with dead letters; the last one answered its row
    assert len(seen) == 1 + retried


def test_an_answer_from_another_form_of_the_manifest_resolves_a_failed_row(workspace):
    bad = workspace.write_broken_images(1)
    first = [*workspace.draw_images(3), *bad]
    workspace.write_manifest(first)
    assert workspace.run_job() == 3
    (workspace.folder / "pics/bad0.png").write_bytes((workspace.folder / "pics/0.png").read_bytes())
    workspace.write_manifest(first[::-1])
    assert workspace.run_job() == 0
    workspace.write_manifest(first)
    assert workspace.run_job() == 0
    assert read_status(str(workspace.folder / "out")).wrong == {}


def test_a_failing_store_is_asked_again_and_a_truncated_part_is_named(workspace, monkeypatch, short_waits):
    workspace.write_manifest(workspace.draw_images(4))
    workspace.run_job()
    for name in ("find", "open"):
        calls, call = count(), getattr(LocalFileSystem, name)

        def stumble(*words, call=call, calls=calls, **more):
            if next(calls) == 0:
                raise ConnectionResetError
            return call(*words, **more)

        monkeypatch.setattr(LocalFileSystem, name, stumble)
    assert read_status(str(workspace.folder / "out")).answered == 4
    (part,) = (workspace.folder / "out/data").glob("fp=*/*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match=rf"{part.name}: is cut short; delete it, and its rows are asked again"):
        read_status(str(workspace.folder / "out"))


def test_a_killed_run_is_listed_with_what_it_committed(workspace):
    workspace.write_manifest(workspace.draw_images(8))
    workspace.run_job(row_limit=4)
    workspace.run_job()
    reports = sorted((workspace.folder / "out/runs").glob("*/report.json"))
    reports[1].unlink()  # as if it had been killed
    killed, done = read_status(str(workspace.folder / "out")).runs
    assert (killed["status"], killed["answered"], killed["failed"], killed["seconds"]) == ("killed", 4, 0, None)
    assert done["status"] == "done"
    assert re.search(r"\n  20\S+ \S+  killed           4 answered +0 failed\n", describe(workspace))


def test_a_stopped_run_counts_what_its_workers_committed_last(workspace):
    workspace.write_manifest(workspace.draw_images(8))
    workspace.run_job()
    (path,) = (workspace.folder / "out/runs").glob("*/report.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "stopped", "answered": 4}))
    assert read_status(str(workspace.folder / "out")).runs[0]["answered"] == 8


def test_a_path_with_spaces_is_quoted_in_the_command_that_is_suggested(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job(output={"path": str(workspace.folder / "my labels")})
    quoted = f"python -m pipeline report '{workspace.folder}/my labels'"
    assert workspace.messages[-1].endswith(f"{quoted} --roots {workspace.folder}"), "no shorter path leads there"
    text = "\n".join(format_status(read_status(str(workspace.folder / "my labels"))))
    assert text.endswith(quoted)


def test_status_names_the_running_run(workspace):
    workspace.write_manifest(workspace.draw_images(2))
    workspace.run_job()
    store = OutputStore(str(workspace.folder / "out"))
    with Lease(Dataset(store, read_status(store.path).fingerprint), "20261121T000000-beef", say=lambda line: None):
        text = "\n".join(format_status(read_status(store.path)))
        assert re.search(r"running   run 20261121T000000-beef on .*, since \S+ \S+ UTC; last seen 20.* UTC", text)
    assert "running   no" in "\n".join(format_status(read_status(store.path)))


def test_the_newest_question_is_shown_and_others_by_name(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job()
    first = read_status(str(workspace.folder / "out"))
    workspace.run_job(prompt={"user": "What colour is it?"}, allow_other_questions=True, row_limit=2)
    out = str(workspace.folder / "out")
    second = read_status(out)
    assert second.fingerprint != first.fingerprint
    assert (second.answered, second.rows, second.questions) == (2, 2, 2)
    assert f"the newest of 2 (--question shows another: {first.fingerprint})" in "\n".join(format_status(second))
    assert main(["status", out, "--question", first.fingerprint, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)
    assert (text["answered"], text["left"], len(text["runs"])) == (3, 0, 1)
    with pytest.raises(OutputError, match="no question abc was asked here"):
        read_status(out, "abc")


def test_status_shows_on_a_terminal_how_far_it_is(workspace, capsys, monkeypatch):
    workspace.write_manifest(workspace.draw_images(2))
    workspace.run_job()
    for is_terminal in (False, True):
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
        capsys.readouterr()
        read_status(str(workspace.folder / "out"))
        assert ("parts" in capsys.readouterr().err) is is_terminal
