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


def mend(workspace, name):
    """The picture of a row that failed is there now."""
    (row,) = workspace.draw_images(1, start=900)
    os.replace(workspace.folder / row["image"], workspace.folder / f"pics/{name}.png")


def wrong(workspace):
    job = Job.model_validate(workspace.build_job())
    work, store = preflight.build_run_context(job, list_manifest_files(job)), OutputStore(str(workspace.folder / "out"))
    found = retry_errors.read_failed_rows(
        retry_errors.find_retry_scope(resume.build_resume_plan(work, list_manifest_files(job), store), work, store),
        store,
        work.fingerprint,
    )
    return {letter.id: (letter.stage, letter.attempts) for letter in found}


def test_rows_whose_picture_came_late_are_answered_on_a_second_try(workspace):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(3)])
    assert workspace.run_job() == 3
    before = workspace.list_parts()
    mend(workspace, "bad0")
    mend(workspace, "bad2")
    assert workspace.run_job(retry_kind="") == 3
    assert "3 of 3 failed rows are asked again" in workspace.messages
    assert workspace.messages[1] == "t: 8 rows, 5 done before; 3 to do in 1 chunk"
    assert workspace.list_answered_ids() == ["bad0", "bad2", "r0", "r1", "r2", "r3", "r4"]
    assert {row["id"]: row["attempts"] for row in workspace.read_answers() if row["id"][0] == "b"} == {
        "bad0": 2,
        "bad2": 2,
    }
    assert wrong(workspace) == {"bad1": ("decode", 2)}
    assert before.items() <= workspace.list_parts().items()
    mend(workspace, "bad1")
    assert workspace.run_job(retry_kind="") == 0
    assert "1 of 1 failed rows are asked again" in workspace.messages
    assert next(row["attempts"] for row in workspace.read_answers() if row["id"] == "bad1") == 3
    assert workspace.run_job() == 0
    assert workspace.run_job(retry_kind="") == 0
    assert "0 of 0 failed rows are asked again" in workspace.messages


def test_a_plain_run_does_not_ask_failed_rows_again_and_exits_with_3_while_there_are_any(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    assert workspace.run_job() == 3
    mend(workspace, "bad0")
    before = workspace.list_parts()
    assert workspace.run_job() == 3
    assert workspace.list_parts() == before


def test_of_a_kind_only_those_rows_are_asked_again(workspace):
    gone = {"id": "gone", "image": "pics/gone.png", "hint": "h"}
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1), gone])
    workspace.run_job()
    mend(workspace, "bad0")
    mend(workspace, "gone")
    assert workspace.run_job(retry_kind="fetch") == 3
    assert workspace.list_answered_ids() == ["gone", "r0", "r1", "r2", "r3", "r4"]
    assert wrong(workspace) == {"bad0": ("decode", 1)}
    assert read_status(str(workspace.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert workspace.run_job(retry_kind="fetch/timeout") == 3
    assert "no failed row is of 'fetch/timeout'; there are: 1 decode/unknown_format" in workspace.messages
    assert workspace.run_job(retry_kind="unknown_format") == 0


@pytest.mark.parametrize("retry", [None, ""])
def test_a_chunk_whose_first_part_was_deleted_is_asked_again_less_what_its_later_parts_answer(workspace, retry):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(2)])
    assert workspace.run_job() == 3
    mend(workspace, "bad0")
    assert workspace.run_job(retry_kind="") == 3
    (first,) = (path for path in (workspace.folder / "out/data").glob("fp=*/*.parquet") if ".g1" not in path.name)
    first.unlink()
    assert workspace.run_job(retry_kind=retry) == 3
    assert workspace.list_answered_ids() == ["bad0", "r0", "r1"]
    assert wrong(workspace).keys() == {"bad1"}


def test_what_is_left_is_done_in_the_same_run(workspace):
    rows, bad = workspace.draw_images(10), workspace.write_broken_images(1)
    workspace.write_manifest([*bad, *rows[:3]])
    workspace.run_job()
    mend(workspace, "bad0")
    workspace.write_manifest([*bad, *rows])
    assert workspace.run_job(retry_kind="") == 0
    assert workspace.list_answered_ids() == sorted(["bad0", *(row["id"] for row in rows)])


def test_a_failed_row_is_asked_anew_where_the_manifest_was_rewritten_and_counts_once(workspace):
    rows, bad = workspace.draw_images(4), workspace.write_broken_images(2)
    workspace.write_manifest([*rows[:2], *bad, *rows[2:]])
    assert workspace.run_job() == 3
    mend(workspace, "bad0")
    workspace.write_manifest([*rows[:3], *bad, rows[3]])
    assert workspace.run_job() == 3
    assert workspace.list_answered_ids() == ["bad0", "r0", "r1", "r2", "r3"]
    assert wrong(workspace) == {"bad1": ("decode", 1)}
    assert len(workspace.read_dead_letters()) == 3  # one of them in letters of two chunks


def test_an_answer_that_was_given_for_another_form_of_the_manifest_counts_and_is_not_asked_for_again(workspace):
    one = [*workspace.draw_images(2), *workspace.write_broken_images(2)]
    workspace.write_manifest(one)
    assert workspace.run_job() == 3
    mend(workspace, "bad0")
    workspace.write_manifest(one[::-1])
    assert workspace.run_job() == 3
    workspace.write_manifest(one)
    assert wrong(workspace) == {"bad1": ("decode", 1)}
    mend(workspace, "bad1")
    assert workspace.run_job(retry_kind="") == 0
    assert workspace.list_answered_ids() == ["bad0", "bad1", "r0", "r1"]


def test_rows_that_fail_again_do_not_stop_the_run(workspace):
    workspace.write_manifest([*workspace.draw_images(10), *workspace.write_broken_images(130)])
    workspace.run_job()
    assert workspace.run_job(retry_kind="", limits={"error_rate": 0.05}) == 3
    assert set(wrong(workspace).values()) == {("decode", 2)}


def test_an_answer_that_did_not_fit_is_asked_for_another_way(workspace, tmp_path):
    """The scripted engine says the same again; the sampling that it is asked with is what changes."""
    from pipeline.output.answer.reask import build_retry_request as later
    from pipeline.types import Sampling

    workspace.write_manifest(workspace.draw_images(2))
    answer = {"schema": "caption", "guided": False}
    assert workspace.run_job(answer=answer) == 3
    asked = []

    def spy(request, attempt):
        asked.append(later(request, attempt).sampling)
        return later(request, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.output.answer.reask.build_retry_request", spy)
        assert workspace.run_job(answer=answer, retry_kind="answer") == 3
    assert [sampling.temperature for sampling in asked] == [0.3, 0.3]
    assert all(isinstance(sampling, Sampling) and sampling.seed > 1_000_000 for sampling in asked)


def test_letters_of_a_writer_that_died_before_its_commit_are_swept_once_another_has_committed(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    workspace.run_job()
    (part,) = (workspace.folder / "out/data").rglob("*.parquet")
    (letters,) = (workspace.folder / "out/errors").rglob("*.parquet")
    part.unlink()  # it died here
    stray = letters.with_name("0123-aaaa.parquet")
    stray.write_bytes(letters.read_bytes())
    assert workspace.run_job() == 3
    left = sorted(path.name for path in (workspace.folder / "out/errors").rglob("*.parquet"))
    named = json.loads(pq.read_metadata(part).metadata[b"vlbatch"])["errors"]
    assert letters.name != named
    assert left == sorted([named, stray.name])  # whose chunk nobody has committed yet


def test_letters_that_were_deleted_are_missed_by_name(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    workspace.run_job()
    workspace.run_job(retry_kind="")
    first = min((workspace.folder / "out/errors").rglob("*.parquet"), key=lambda path: (".g" in path.name, path.name))
    first.unlink()
    with pytest.raises(
        OutputError, match=r"-[0-9a-f]{8}\.parquet was deleted .*; delete data/fp=.*, and they are asked"
    ):
        workspace.run_job()


def test_the_command_takes_a_kind_or_none(workspace, capsys):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(1)])
    job = str(workspace.write_job_file())
    assert main(["run", job, "--local"]) == 3
    assert "--retry-errors asks them again" in capsys.readouterr().err
    mend(workspace, "bad0")
    assert main(["run", job, "--local", "--retry-errors", "fetch"]) == 3
    assert main(["run", job, "--local", "--retry-errors"]) == 0
