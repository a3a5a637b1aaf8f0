"""Runs that ask failed rows again."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.inspect.status import read_status
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume, retry_errors

pytestmark = pytest.mark.process


def repair_image(workspace, name):
    (row,) = workspace.draw_images(1, start=900)
    os.replace(workspace.folder / row["image"], workspace.folder / f"pics/{name}.png")


def read_failed_rows(workspace):
    """The stage and the attempts of each failed row, by id."""
    job = Job.model_validate(workspace.build_job())
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    dataset = Dataset(OutputStore(str(workspace.folder / "out")), context.fingerprint)
    plan = resume.build_resume_plan(context, manifest_files, dataset)
    letters = retry_errors.read_failed_rows(
        retry_errors.find_retry_scope(plan, dataset.list_dead_letters(), dataset), dataset
    )
    return {letter.id: (letter.stage, letter.attempts) for letter in letters}


def test_failed_rows_whose_pictures_arrive_later_are_answered_on_retry(workspace):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(3)])
    assert workspace.run_job() == 3
    before = workspace.list_parts()
    repair_image(workspace, "bad0")
    repair_image(workspace, "bad2")
    assert workspace.run_job(retry_kind="") == 3
    assert "3 of 3 failed rows are asked again" in workspace.messages
    assert workspace.messages[1] == "t: 8 rows, 5 done before; 3 to do in 1 chunk"
    assert workspace.list_answered_ids() == ["bad0", "bad2", "r0", "r1", "r2", "r3", "r4"]
    assert {row["id"]: row["attempts"] for row in workspace.read_answers() if row["id"][0] == "b"} == {
        "bad0": 2,
        "bad2": 2,
    }
    assert read_failed_rows(workspace) == {"bad1": ("decode", 2)}
    assert before.items() <= workspace.list_parts().items()
    repair_image(workspace, "bad1")
    assert workspace.run_job(retry_kind="") == 0
    assert "1 of 1 failed rows are asked again" in workspace.messages
    assert next(row["attempts"] for row in workspace.read_answers() if row["id"] == "bad1") == 3
    assert workspace.run_job() == 0
    assert workspace.run_job(retry_kind="") == 0
    assert "0 of 0 failed rows are asked again" in workspace.messages


def test_a_plain_run_does_not_retry_failed_rows_and_still_exits_with_3(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    assert workspace.run_job() == 3
    repair_image(workspace, "bad0")
    before = workspace.list_parts()
    assert workspace.run_job() == 3
    assert workspace.list_parts() == before


def test_only_failed_rows_of_the_given_kind_are_retried(workspace):
    gone = {"id": "gone", "image": "pics/gone.png", "hint": "h"}
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1), gone])
    workspace.run_job()
    repair_image(workspace, "bad0")
    repair_image(workspace, "gone")
    assert workspace.run_job(retry_kind="fetch") == 3
    assert workspace.list_answered_ids() == ["gone", "r0", "r1", "r2", "r3", "r4"]
    assert read_failed_rows(workspace) == {"bad0": ("decode", 1)}
    assert read_status(str(workspace.folder / "out")).wrong == {"decode/unknown_format": 1}
    assert workspace.run_job(retry_kind="fetch/timeout") == 3
    assert "no failed row is of kind 'fetch/timeout'; the kinds are: 1 decode/unknown_format" in workspace.messages
    assert workspace.run_job(retry_kind="unknown_format") == 0


@pytest.mark.parametrize("retry", [None, ""])
def test_a_chunk_without_its_first_part_is_run_again_except_rows_answered_later(workspace, retry):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(2)])
    assert workspace.run_job() == 3
    repair_image(workspace, "bad0")
    assert workspace.run_job(retry_kind="") == 3
    (first,) = (path for path in (workspace.folder / "out/data").glob("fp=*/*.parquet") if ".g1" not in path.name)
    first.unlink()
    assert workspace.run_job(retry_kind=retry) == 3
    assert workspace.list_answered_ids() == ["bad0", "r0", "r1"]
    assert read_failed_rows(workspace).keys() == {"bad1"}


def test_a_retry_also_runs_the_remaining_rows(workspace):
    rows, bad = workspace.draw_images(10), workspace.write_broken_images(1)
    workspace.write_manifest([*bad, *rows[:3]])
    workspace.run_job()
    repair_image(workspace, "bad0")
    workspace.write_manifest([*bad, *rows])
    assert workspace.run_job(retry_kind="") == 0
    assert workspace.list_answered_ids() == sorted(["bad0", *(row["id"] for row in rows)])


def test_a_failed_row_of_a_rewritten_manifest_is_asked_again_and_counts_once(workspace):
    rows, bad = workspace.draw_images(4), workspace.write_broken_images(2)
    workspace.write_manifest([*rows[:2], *bad, *rows[2:]])
    assert workspace.run_job() == 3
    repair_image(workspace, "bad0")
    workspace.write_manifest([*rows[:3], *bad, rows[3]])
    assert workspace.run_job() == 3
    assert workspace.list_answered_ids() == ["bad0", "r0", "r1", "r2", "r3"]
    assert read_failed_rows(workspace) == {"bad1": ("decode", 1)}
    assert len(workspace.read_dead_letters()) == 3  # one of them in two chunks


def test_an_answer_for_another_version_of_the_manifest_counts_and_is_not_repeated(workspace):
    rows = [*workspace.draw_images(2), *workspace.write_broken_images(2)]
    workspace.write_manifest(rows)
    assert workspace.run_job() == 3
    repair_image(workspace, "bad0")
    workspace.write_manifest(rows[::-1])
    assert workspace.run_job() == 3
    workspace.write_manifest(rows)
    assert read_failed_rows(workspace) == {"bad1": ("decode", 1)}
    repair_image(workspace, "bad1")
    assert workspace.run_job(retry_kind="") == 0
    assert workspace.list_answered_ids() == ["bad0", "bad1", "r0", "r1"]


def test_rows_that_fail_again_do_not_stop_the_run(workspace):
    workspace.write_manifest([*workspace.draw_images(10), *workspace.write_broken_images(130)])
    workspace.run_job()
    assert workspace.run_job(retry_kind="", limits={"error_rate": 0.05}) == 3
    assert set(read_failed_rows(workspace).values()) == {("decode", 2)}


def test_the_retry_of_an_invalid_answer_samples_differently(workspace, tmp_path):
    """The scripted engine repeats its reply; the sampling of the request is what changes."""
    from pipeline.output.answer.reask import build_retry_request
    from pipeline.types import Sampling

    workspace.write_manifest(workspace.draw_images(2))
    answer = {"schema": "caption", "guided": False}
    assert workspace.run_job(answer=answer) == 3
    samplings = []

    def record_sampling(request, attempt):
        retry = build_retry_request(request, attempt)
        samplings.append(retry.sampling)
        return retry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.output.answer.reask.build_retry_request", record_sampling)
        assert workspace.run_job(answer=answer, retry_kind="answer") == 3
    assert [sampling.temperature for sampling in samplings] == [0.3, 0.3]
    assert all(isinstance(sampling, Sampling) and sampling.seed > 1_000_000 for sampling in samplings)


def test_dead_letters_of_a_writer_that_died_are_deleted_once_another_one_commits(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    workspace.run_job()
    (part,) = (workspace.folder / "out/data").rglob("*.parquet")
    (letters,) = (workspace.folder / "out/errors").rglob("*.parquet")
    part.unlink()  # as if the writer had died before its commit
    stray = letters.with_name("0123-aaaa.parquet")
    stray.write_bytes(letters.read_bytes())
    assert workspace.run_job() == 3
    remaining = sorted(path.name for path in (workspace.folder / "out/errors").rglob("*.parquet"))
    committed = json.loads(pq.read_metadata(part).metadata[b"vlbatch"])["errors"]
    assert letters.name != committed
    assert remaining == sorted([committed, stray.name])  # no part of the stray file's chunk is committed


def test_deleted_dead_letters_are_an_error_that_names_the_file(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    workspace.run_job()
    workspace.run_job(retry_kind="")
    first = min((workspace.folder / "out/errors").rglob("*.parquet"), key=lambda path: (".g" in path.name, path.name))
    first.unlink()
    with pytest.raises(OutputError, match=r"-[0-9a-f]{8}\.parquet was deleted.*; delete data/fp=.* to ask them again"):
        workspace.run_job()


def test_retry_errors_takes_kinds_or_none_and_leaves_the_job_alone(workspace, capsys):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(1)])
    job = str(workspace.write_job_file())
    assert main(["run", job, "--local"]) == 3
    assert "--retry-errors asks them again" in capsys.readouterr().err
    repair_image(workspace, "bad0")
    assert main(["run", job, "--local", "--retry-errors", "Fetch,read/row"]) == 3
    assert "no failed row is of kind 'Fetch,read/row'" in capsys.readouterr().err
    assert main(["run", "--local", "--retry-errors", job]) == 0
    assert main(["run", job, "--local", "--retry-errors", "decode,fetch"]) == 0
