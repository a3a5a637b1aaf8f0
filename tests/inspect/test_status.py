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
from pipeline.output.store import OutputStore
from pipeline.run import driver, preflight
from pipeline.run.lease import Lease


def test_an_output_says_what_is_answered_wrong_and_left(desk):
    desk.manifest([*desk.draw(9), *desk.spoil(2), {"id": "gone", "image": "pics/gone.png", "hint": "h"}])
    desk.run()
    found = read_status(str(desk.folder / "out"))
    assert (found.answered, found.rows, found.left, found.parts) == (9, 12, 0, 3)
    assert found.wrong == {"decode/unknown_format": 2, "fetch/not_found": 1}
    said = "\n".join(format_status(found))
    assert "answered  9 rows in 3 parts" in said
    assert "2  decode/unknown_format: file://" in said
    assert "gone.png: no such file" in said
    assert "at work   nobody" in said
    assert " done " in said


def test_what_a_stopped_run_left_is_counted(desk):
    desk.manifest(desk.draw(12))
    desk.run()
    one = min((desk.folder / "out/data").glob("fp=*/*.parquet"))
    one.unlink()
    found = read_status(str(desk.folder / "out"))
    assert found.left == 4
    assert "give the same run command again" in "\n".join(format_status(found))


def test_a_row_that_failed_before_its_manifest_was_rewritten_and_was_answered_since_is_not_wrong(desk):
    bad = desk.spoil(2)
    desk.manifest([*desk.draw(6), *bad])
    assert desk.run() == 3
    good = (desk.folder / "pics/0.png").read_bytes()
    (desk.folder / "pics/bad0.png").write_bytes(good)
    desk.manifest([bad[0], *desk.draw(6), bad[1]])  # other chunks: all that failed is asked anew
    assert desk.run() == 3
    found = read_status(str(desk.folder / "out"))
    assert (found.answered, found.wrong, found.left) == (7, {"decode/unknown_format": 1}, 0)


def test_what_is_left_is_of_the_manifest_of_the_last_run_whatever_was_answered_before(desk):
    desk.manifest(desk.draw(12))
    assert desk.run() == 0
    bad = desk.spoil(1)
    desk.manifest([*desk.draw(11, start=20), *bad])  # as of another day
    assert desk.run() == 3
    assert read_status(str(desk.folder / "out")).left == 0
    for path in sorted((desk.folder / "out/data").glob("fp=*/*.parquet"), key=os.path.getmtime)[-2:]:
        path.unlink()  # as if it had died before
    next((desk.folder / "out/runs").glob(f"{max(os.listdir(desk.folder / 'out/runs'))}/report.json")).unlink()
    found = read_status(str(desk.folder / "out"))
    assert (found.answered, found.rows, found.left, found.wrong) == (16, 12, 8, {})


def test_the_last_run_is_the_last_whatever_the_clocks_of_two_machines_say(desk, monkeypatch):
    class Ahead(datetime):
        @classmethod
        def now(cls, zone):
            return datetime.now(zone) + timedelta(minutes=10)

    desk.manifest(desk.draw(4))
    with monkeypatch.context() as there:
        there.setattr(preflight, "datetime", Ahead)
        assert desk.run() == 0
    desk.manifest(desk.draw(9, start=20))
    assert desk.run() == 0
    assert read_status(str(desk.folder / "out")).rows == 9


def test_what_a_run_that_died_over_a_rewritten_manifest_asks_anew_is_left_and_not_wrong(desk, monkeypatch):
    bad = desk.spoil(2)
    desk.manifest([*desk.draw(6), *bad])
    assert desk.run() == 3
    desk.manifest([*desk.draw(5), *bad])
    monkeypatch.setattr(driver, "finish", lambda *_: 9)
    assert desk.run() == 9
    found = read_status(str(desk.folder / "out"))
    assert (found.answered, found.rows, found.left, found.wrong) == (6, 7, 2, {})


def test_rows_that_failed_are_looked_for_in_parts_that_may_answer_them_and_in_no_others(desk, monkeypatch):
    rows, bad = desk.draw(12), desk.spoil(1)
    desk.manifest([*bad, *rows])
    assert desk.run(limit=2) == 3  # a trial, whose chunk the whole does not have
    assert desk.run() == 3
    read, seen = OutputStore.read_object, []
    monkeypatch.setattr(OutputStore, "read", lambda store, name: (seen.append(name), read(store, name))[1])
    assert read_status(str(desk.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert sum(name.startswith("data/") for name in seen) == 1


def test_a_row_that_failed_in_one_form_of_the_manifest_and_was_answered_in_another_is_not_wrong_in_the_first(desk):
    bad = desk.spoil(1)
    first = [*desk.draw(3), *bad]
    desk.manifest(first)
    assert desk.run() == 3
    (desk.folder / "pics/bad0.png").write_bytes((desk.folder / "pics/0.png").read_bytes())
    desk.manifest(first[::-1])
    assert desk.run() == 0
    desk.manifest(first)
    assert desk.run() == 0
    assert read_status(str(desk.folder / "out")).wrong == {}


def test_a_store_that_stumbles_is_asked_again_and_a_part_that_is_cut_short_is_named(desk, monkeypatch, hurry):
    desk.manifest(desk.draw(4))
    desk.run()
    for name in ("find", "open"):
        calls, call = count(), getattr(LocalFileSystem, name)

        def stumble(*words, call=call, calls=calls, **more):
            if next(calls) == 0:
                raise ConnectionResetError
            return call(*words, **more)

        monkeypatch.setattr(LocalFileSystem, name, stumble)
    assert read_status(str(desk.folder / "out")).answered == 4
    (part,) = (desk.folder / "out/data").glob("fp=*/*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match=rf"{part.name}: is cut short; delete it, and its rows are asked again"):
        read_status(str(desk.folder / "out"))


def test_who_is_at_work_is_said(desk):
    desk.manifest(desk.draw(2))
    desk.run()
    store = OutputStore(str(desk.folder / "out"))
    with Lease(store, read_status(store.path).fingerprint, "20261121T000000-beef", say=lambda line: None):
        said = "\n".join(format_status(read_status(store.path)))
        assert re.search(r"at work   run 20261121T000000-beef on .*, since \S+ \S+ UTC; seen last 20.* UTC", said)
    assert "at work   nobody" in "\n".join(format_status(read_status(store.path)))


def test_the_question_asked_last_is_shown_and_others_by_name(desk, capsys):
    desk.manifest(desk.draw(3))
    desk.run()
    first = read_status(str(desk.folder / "out"))
    desk.run(prompt={"user": "What colour is it?"}, add=True, limit=2)
    out = str(desk.folder / "out")
    second = read_status(out)
    assert second.fingerprint != first.fingerprint
    assert (second.answered, second.rows, second.questions) == (2, 2, 2)
    assert f"the newest of 2 (--question shows another: {first.fingerprint})" in "\n".join(format_status(second))
    assert main(["status", out, "--question", first.fingerprint, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["answered"], said["left"], len(said["runs"])) == (3, 0, 1)
    with pytest.raises(OutputError, match="no question abc was asked here"):
        read_status(out, "abc")
