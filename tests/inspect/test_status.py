"""What an output says of itself, without its manifest."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timedelta
from itertools import count

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.inspect.status import format_status, read_status
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import driver, preflight
from pipeline.run.lease import Lease


def test_an_output_says_what_is_answered_wrong_and_left(workspace):
    workspace.write_manifest(
        [
            *workspace.draw_images(9),
            *workspace.write_broken_images(2),
            {"id": "gone", "image": "pics/gone.png", "hint": "h"},
        ]
    )
    workspace.run_job()
    found = read_status(str(workspace.folder / "out"))
    assert (found.answered, found.rows, found.left, found.parts) == (9, 12, 0, 3)
    assert found.wrong == {"decode/unknown_format": 2, "fetch/not_found": 1}
    said = "\n".join(format_status(found))
    assert "answered  9 rows in 3 parts" in said
    assert "2  decode/unknown_format: file://" in said
    assert "gone.png: no such file" in said
    assert "running   no" in said
    assert " done " in said


def test_what_a_stopped_run_left_is_counted(workspace):
    workspace.write_manifest(workspace.draw_images(12))
    workspace.run_job()
    one = min((workspace.folder / "out/data").glob("fp=*/*.parquet"))
    one.unlink()
    found = read_status(str(workspace.folder / "out"))
    assert found.left == 4
    assert "give the same run command again: it asks the rows that are left" in "\n".join(format_status(found))


def test_a_row_that_failed_before_its_manifest_was_rewritten_and_was_answered_since_is_not_wrong(workspace):
    bad = workspace.write_broken_images(2)
    workspace.write_manifest([*workspace.draw_images(6), *bad])
    assert workspace.run_job() == 3
    good = (workspace.folder / "pics/0.png").read_bytes()
    (workspace.folder / "pics/bad0.png").write_bytes(good)
    workspace.write_manifest([bad[0], *workspace.draw_images(6), bad[1]])  # other chunks: all that failed is asked anew
    assert workspace.run_job() == 3
    found = read_status(str(workspace.folder / "out"))
    assert (found.answered, found.wrong, found.left) == (7, {"decode/unknown_format": 1}, 0)


def test_what_is_left_is_of_the_manifest_of_the_last_run_whatever_was_answered_before(workspace):
    workspace.write_manifest(workspace.draw_images(12))
    assert workspace.run_job() == 0
    bad = workspace.write_broken_images(1)
    workspace.write_manifest([*workspace.draw_images(11, start=20), *bad])  # as of another day
    assert workspace.run_job() == 3
    assert read_status(str(workspace.folder / "out")).left == 0
    for path in sorted((workspace.folder / "out/data").glob("fp=*/*.parquet"), key=os.path.getmtime)[-2:]:
        path.unlink()  # as if it had died before
    next((workspace.folder / "out/runs").glob(f"{max(os.listdir(workspace.folder / 'out/runs'))}/report.json")).unlink()
    found = read_status(str(workspace.folder / "out"))
    assert (found.answered, found.rows, found.left, found.wrong) == (16, 12, 8, {})


def test_the_last_run_is_the_last_whatever_the_clocks_of_two_machines_say(workspace, monkeypatch):
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


def test_what_a_run_that_died_over_a_rewritten_manifest_asks_anew_is_left_and_not_wrong(workspace, monkeypatch):
    bad = workspace.write_broken_images(2)
    workspace.write_manifest([*workspace.draw_images(6), *bad])
    assert workspace.run_job() == 3
    workspace.write_manifest([*workspace.draw_images(5), *bad])
    monkeypatch.setattr(driver, "run_to_completion", lambda *_: 9)
    assert workspace.run_job() == 9
    found = read_status(str(workspace.folder / "out"))
    assert (found.answered, found.rows, found.left, found.wrong) == (6, 7, 2, {})


def test_rows_that_failed_are_looked_for_in_parts_that_may_answer_them_and_in_no_others(workspace, monkeypatch):
    rows, bad = workspace.draw_images(12), workspace.write_broken_images(1)
    workspace.write_manifest([*bad, *rows])
    assert workspace.run_job(row_limit=2) == 3  # a trial, whose chunk the whole does not have
    assert workspace.run_job() == 3
    read, seen = Dataset.read_part, []
    monkeypatch.setattr(Dataset, "read_part", lambda dataset, *words: (seen.append(words[0]), read(dataset, *words))[1])
    assert read_status(str(workspace.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert seen == []  # the note of the chunk with the dead letter stands in its footer


def test_a_row_that_failed_in_one_form_of_the_manifest_and_was_answered_in_another_is_not_wrong_in_the_first(workspace):
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


def test_a_store_that_stumbles_is_asked_again_and_a_part_that_is_cut_short_is_named(
    workspace, monkeypatch, short_waits
):
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


def test_who_is_at_work_is_said(workspace):
    workspace.write_manifest(workspace.draw_images(2))
    workspace.run_job()
    store = OutputStore(str(workspace.folder / "out"))
    with Lease(Dataset(store, read_status(store.path).fingerprint), "20261121T000000-beef", say=lambda line: None):
        said = "\n".join(format_status(read_status(store.path)))
        assert re.search(r"running   run 20261121T000000-beef on .*, since \S+ \S+ UTC; last seen 20.* UTC", said)
    assert "running   no" in "\n".join(format_status(read_status(store.path)))


def test_the_question_asked_last_is_shown_and_others_by_name(workspace, capsys):
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
    said = json.loads(capsys.readouterr().out)
    assert (said["answered"], said["left"], len(said["runs"])) == (3, 0, 1)
    with pytest.raises(OutputError, match="no question abc was asked here"):
        read_status(out, "abc")
