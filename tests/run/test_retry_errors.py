"""Failed rows, driven again."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.inspect.status import read_status
from pipeline.job.spec import Job
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume, retry_errors
from pipeline.run.driver import list_manifest_files


def mend(desk, name):
    """The picture of a row that failed is there now."""
    (row,) = desk.draw(1, start=900)
    os.replace(desk.folder / row["image"], desk.folder / f"pics/{name}.png")


def wrong(desk):
    job = Job.model_validate(desk.described())
    work, store = preflight.build_run_context(job, list_manifest_files(job)), OutputStore(str(desk.folder / "out"))
    found = retry_errors.read_failed_rows(
        retry_errors.find_retry_scope(resume.build_resume_plan(work, list_manifest_files(job), store), work, store),
        store,
        work.fingerprint,
    )
    return {letter.id: (letter.stage, letter.attempts) for letter in found}


def test_rows_whose_picture_came_late_are_answered_on_a_second_try(desk):
    desk.manifest([*desk.draw(5), *desk.spoil(3)])
    assert desk.run() == 3
    before = desk.parts()
    mend(desk, "bad0")
    mend(desk, "bad2")
    assert desk.run(retry="") == 3
    assert "3 of 3 failed rows are asked again" in desk.said
    assert desk.said[1] == "t: 8 rows, 5 done before; 3 to do in 1 chunk"
    assert desk.ids() == ["bad0", "bad2", "r0", "r1", "r2", "r3", "r4"]
    assert {row["id"]: row["attempts"] for row in desk.data() if row["id"][0] == "b"} == {"bad0": 2, "bad2": 2}
    assert wrong(desk) == {"bad1": ("decode", 2)}
    assert before.items() <= desk.parts().items()
    mend(desk, "bad1")
    assert desk.run(retry="") == 0
    assert "1 of 1 failed rows are asked again" in desk.said
    assert next(row["attempts"] for row in desk.data() if row["id"] == "bad1") == 3
    assert desk.run() == 0
    assert desk.run(retry="") == 0
    assert "0 of 0 failed rows are asked again" in desk.said


def test_a_plain_run_does_not_ask_failed_rows_again_and_exits_with_3_while_there_are_any(desk):
    desk.manifest([*desk.draw(3), *desk.spoil(1)])
    assert desk.run() == 3
    mend(desk, "bad0")
    before = desk.parts()
    assert desk.run() == 3
    assert desk.parts() == before


def test_of_a_kind_only_those_rows_are_asked_again(desk):
    gone = {"id": "gone", "image": "pics/gone.png", "hint": "h"}
    desk.manifest([*desk.draw(5), *desk.spoil(1), gone])
    desk.run()
    mend(desk, "bad0")
    mend(desk, "gone")
    assert desk.run(retry="fetch") == 3
    assert desk.ids() == ["gone", "r0", "r1", "r2", "r3", "r4"]
    assert wrong(desk) == {"bad0": ("decode", 1)}
    assert read_status(str(desk.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert desk.run(retry="fetch/timeout") == 3
    assert "no failed row is of 'fetch/timeout'; there are: 1 decode/unknown_format" in desk.said
    assert desk.run(retry="unknown_format") == 0


@pytest.mark.parametrize("retry", [None, ""])
def test_a_chunk_whose_first_part_was_deleted_is_asked_again_less_what_its_later_parts_answer(desk, retry):
    desk.manifest([*desk.draw(2), *desk.spoil(2)])
    assert desk.run() == 3
    mend(desk, "bad0")
    assert desk.run(retry="") == 3
    (first,) = (path for path in (desk.folder / "out/data").glob("fp=*/*.parquet") if ".g1" not in path.name)
    first.unlink()
    assert desk.run(retry=retry) == 3
    assert desk.ids() == ["bad0", "r0", "r1"]
    assert wrong(desk).keys() == {"bad1"}


def test_what_is_left_is_done_in_the_same_run(desk):
    rows, bad = desk.draw(10), desk.spoil(1)
    desk.manifest([*bad, *rows[:3]])
    desk.run()
    mend(desk, "bad0")
    desk.manifest([*bad, *rows])
    assert desk.run(retry="") == 0
    assert desk.ids() == sorted(["bad0", *(row["id"] for row in rows)])


def test_a_failed_row_is_asked_anew_where_the_manifest_was_rewritten_and_counts_once(desk):
    rows, bad = desk.draw(4), desk.spoil(2)
    desk.manifest([*rows[:2], *bad, *rows[2:]])
    assert desk.run() == 3
    mend(desk, "bad0")
    desk.manifest([*rows[:3], *bad, rows[3]])
    assert desk.run() == 3
    assert desk.ids() == ["bad0", "r0", "r1", "r2", "r3"]
    assert wrong(desk) == {"bad1": ("decode", 1)}
    assert len(desk.errors()) == 3  # one of them in letters of two chunks


def test_an_answer_that_was_given_for_another_form_of_the_manifest_counts_and_is_not_asked_for_again(desk):
    one = [*desk.draw(2), *desk.spoil(2)]
    desk.manifest(one)
    assert desk.run() == 3
    mend(desk, "bad0")
    desk.manifest(one[::-1])
    assert desk.run() == 3
    desk.manifest(one)
    assert wrong(desk) == {"bad1": ("decode", 1)}
    mend(desk, "bad1")
    assert desk.run(retry="") == 0
    assert desk.ids() == ["bad0", "bad1", "r0", "r1"]


def test_rows_that_fail_again_do_not_stop_the_run(desk):
    desk.manifest([*desk.draw(10), *desk.spoil(130)])
    desk.run()
    assert desk.run(retry="", limits={"error_rate": 0.05}) == 3
    assert set(wrong(desk).values()) == {("decode", 2)}


def test_an_answer_that_did_not_fit_is_asked_for_another_way(desk, tmp_path):
    """The scripted engine says the same again; the sampling that it is asked with is what changes."""
    from pipeline.output.answer.reask import build_retry_request as later
    from pipeline.types import Sampling

    desk.manifest(desk.draw(2))
    answer = {"schema": "caption", "guided": False}
    assert desk.run(answer=answer) == 3
    asked = []

    def spy(request, attempt):
        asked.append(later(request, attempt).sampling)
        return later(request, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.output.answer.reask.again", spy)
        assert desk.run(answer=answer, retry="answer") == 3
    assert [sampling.temperature for sampling in asked] == [0.3, 0.3]
    assert all(isinstance(sampling, Sampling) and sampling.seed > 1_000_000 for sampling in asked)


def test_letters_of_a_writer_that_died_before_its_commit_are_swept_once_another_has_committed(desk):
    desk.manifest([*desk.draw(3), *desk.spoil(1)])
    desk.run()
    (part,) = (desk.folder / "out/data").rglob("*.parquet")
    (letters,) = (desk.folder / "out/errors").rglob("*.parquet")
    part.unlink()  # it died here
    stray = letters.with_name("0123-aaaa.parquet")
    stray.write_bytes(letters.read_bytes())
    assert desk.run() == 3
    left = sorted(path.name for path in (desk.folder / "out/errors").rglob("*.parquet"))
    named = json.loads(pq.read_metadata(part).metadata[b"vlbatch"])["errors"]
    assert letters.name != named
    assert left == sorted([named, stray.name])  # whose chunk nobody has committed yet


def test_letters_that_were_deleted_are_missed_by_name(desk):
    desk.manifest([*desk.draw(3), *desk.spoil(1)])
    desk.run()
    desk.run(retry="")
    first = min((desk.folder / "out/errors").rglob("*.parquet"), key=lambda path: (".g" in path.name, path.name))
    first.unlink()
    with pytest.raises(
        OutputError, match=r"-[0-9a-f]{8}\.parquet was deleted .*; delete data/fp=.*, and they are asked"
    ):
        desk.run()


def test_the_command_takes_a_kind_or_none(desk, capsys):
    desk.manifest([*desk.draw(2), *desk.spoil(1)])
    job = str(desk.yaml())
    assert main(["run", job, "--local"]) == 3
    assert "--retry-errors asks them again" in capsys.readouterr().err
    mend(desk, "bad0")
    assert main(["run", job, "--local", "--retry-errors", "fetch"]) == 3
    assert main(["run", job, "--local", "--retry-errors"]) == 0
