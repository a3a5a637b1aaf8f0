"""What an output says of itself, without its manifest."""

from __future__ import annotations

import json

import pytest

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.output.store import Store
from pipeline.run.lease import Lease
from pipeline.run.status import lines, status


def test_an_output_says_what_is_answered_wrong_and_left(desk):
    desk.manifest([*desk.draw(9), *desk.spoil(2), {"id": "gone", "image": "pics/gone.png", "hint": "h"}])
    desk.run()
    found = status(str(desk.folder / "out"))
    assert (found.answered, found.rows, found.left, found.parts) == (9, 12, 0, 3)
    assert found.wrong == {"decode/unknown_format": 2, "fetch/not_found": 1}
    said = "\n".join(lines(found))
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
    found = status(str(desk.folder / "out"))
    assert found.left == 4
    assert "give the same run command again" in "\n".join(lines(found))


def test_a_row_that_failed_before_its_manifest_was_rewritten_and_was_answered_since_is_not_wrong(desk):
    bad = desk.spoil(2)
    desk.manifest([*desk.draw(6), *bad])
    assert desk.run() == 3
    good = (desk.folder / "pics/0.png").read_bytes()
    (desk.folder / "pics/bad0.png").write_bytes(good)
    desk.manifest([bad[0], *desk.draw(6), bad[1]])  # other chunks: all that failed is asked anew
    assert desk.run() == 3
    found = status(str(desk.folder / "out"))
    assert (found.answered, found.wrong, found.left) == (7, {"decode/unknown_format": 1}, 0)


def test_who_is_at_work_is_said(desk):
    desk.manifest(desk.draw(2))
    desk.run()
    store = Store(str(desk.folder / "out"))
    with Lease(store, status(store.path).fingerprint, "20261121T000000-beef", say=lambda line: None):
        assert "at work   run 20261121T000000-beef on " in "\n".join(lines(status(store.path)))
    assert "at work   nobody" in "\n".join(lines(status(store.path)))


def test_the_question_asked_last_is_shown_and_others_by_name(desk, capsys):
    desk.manifest(desk.draw(3))
    desk.run()
    first = status(str(desk.folder / "out"))
    desk.run(prompt={"user": "What colour is it?"}, add=True, limit=2)
    out = str(desk.folder / "out")
    second = status(out)
    assert second.fingerprint != first.fingerprint
    assert (second.answered, second.rows, second.questions) == (2, 2, 2)
    assert main(["status", out, "--question", first.fingerprint, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["answered"], said["left"], len(said["runs"])) == (3, 0, 1)
    with pytest.raises(OutputError, match="no question abc was asked here"):
        status(out, "abc")
