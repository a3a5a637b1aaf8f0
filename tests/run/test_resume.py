"""The chunks that are left after crashes and after changes of the manifest."""

from __future__ import annotations

from itertools import count

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError, StoppedError
from pipeline.manifest.sources.parquet import ParquetSource
from pipeline.prepare import Preparer

pytestmark = pytest.mark.process


def delete_parts_with(workspace, row_id):
    for path in (workspace.folder / "out/data").rglob("*.parquet"):
        if row_id in pq.ParquetFile(path).read(columns=["id"])["id"].to_pylist():
            path.unlink()


def test_a_repeated_question_is_not_lost_if_its_first_chunk_was_not_committed(workspace):
    x, y, z = workspace.draw_images(3)
    workspace.write_manifest([x, y, x, z])
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    delete_parts_with(workspace, "r0")  # as if the run had crashed before it committed the first chunk
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2"]


def test_a_repeated_question_is_not_lost_if_its_first_row_leaves_the_manifest(workspace):
    x, y, z = workspace.draw_images(3)
    workspace.write_manifest([x, y, x, z])
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    delete_parts_with(workspace, "r0")
    workspace.write_manifest([x, z])
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    assert workspace.list_answered_ids() == ["r0", "r2"]


def test_a_question_that_moves_to_the_front_of_the_manifest_is_not_asked_again(workspace):
    rows = workspace.draw_images(4)
    workspace.write_manifest(rows)
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    workspace.write_manifest([rows[3], *rows])
    assert workspace.run_job(output={"chunk_rows": 2}) == 0
    assert workspace.list_answered_ids() == ["r0", "r1", "r2", "r3"]
    assert "4 done before; 0 to do" in workspace.messages[0]


def test_answered_rows_are_recognised_in_any_chunk_size_and_order(workspace):
    rows = workspace.draw_images(9)
    workspace.write_manifest(rows[:7])
    assert workspace.run_job(output={"chunk_rows": 3}) == 0
    workspace.write_manifest(rows[::-1])
    assert workspace.run_job(output={"chunk_rows": 4}) == 0
    assert workspace.list_answered_ids() == [f"r{n}" for n in range(9)]
    assert "7 done before; 2 to do" in workspace.messages[0]


def test_whole_numbers_that_a_rewritten_manifest_has_as_floats_are_the_same_ids(workspace):
    rows = workspace.draw_images(3)
    workspace.write_manifest([{**row, "id": number} for number, row in enumerate(rows)])
    assert workspace.run_job() == 0
    parts = workspace.list_parts()
    workspace.write_manifest([{**row, "id": float(number)} for number, row in enumerate(rows)])
    assert workspace.run_job() == 0
    assert workspace.list_parts() == parts


def test_a_run_that_recognises_none_of_many_earlier_ids_says_so_before_it_starts(workspace):
    (row,) = workspace.draw_images(1)
    big_chunks = {"output": {"chunk_rows": 100}}
    workspace.write_manifest([{**row, "id": f"{number}"} for number in range(100)])
    assert workspace.run_job(**big_chunks) == 0
    assert not any("none of the" in line for line in workspace.messages)
    workspace.write_manifest([{**row, "id": f"scan-{number}"} for number in range(2)])
    assert workspace.run_job(**big_chunks) == 0
    assert workspace.messages[0] == (
        "careful: none of the 100 rows that this output answers is in the manifest, so all 2 rows are asked; "
        "an id was '0', the first one is now 'scan-0'"
    )


def test_a_row_limit_counts_repeated_rows(workspace):
    rows = workspace.draw_images(4)
    workspace.write_manifest([rows[0], rows[0], rows[1], rows[2], rows[0], rows[3]])
    assert workspace.run_job(row_limit=3) == 0
    assert workspace.list_answered_ids() == ["r0", "r1"]
    assert "2 rows, 1 more that ask the same" in workspace.messages[0]


def test_a_manifest_that_changes_during_a_run_stops_it(workspace, monkeypatch):
    rows = workspace.draw_images(6)
    workspace.write_manifest(rows)
    prepare = Preparer.prepare_pieces

    def rewrite_manifest(self, chunk, *more):
        workspace.write_manifest(rows[::-1])
        return prepare(self, chunk, *more)

    monkeypatch.setattr(Preparer, "prepare_pieces", rewrite_manifest)
    with pytest.raises(StoppedError, match=r"m\.parquet was changed during the run; run the same command again"):
        workspace.run_job()
    assert workspace.list_parts() == {}


@pytest.mark.usefixtures("short_waits")
def test_reading_the_manifest_is_retried_after_a_connection_error(workspace, monkeypatch):
    read, calls = ParquetSource.read_span, count()

    def fail_sometimes(source, span, columns=None):
        table = read(source, span, columns)
        if next(calls) in (2, 3, 5):  # calls 0 and 1 plan; then the first chunk fails twice and the second once
            raise ConnectionResetError
        return table

    monkeypatch.setattr(ParquetSource, "read_span", fail_sometimes)
    workspace.write_manifest(workspace.draw_images(8))
    assert workspace.run_job() == 0
    assert workspace.list_answered_ids() == [f"r{number}" for number in range(8)]
    assert next(calls) == 7


def test_an_unreachable_manifest_is_an_error_of_one_sentence(workspace, monkeypatch):
    def fail(source, span, columns=None):
        raise ConnectionResetError

    monkeypatch.setattr(ParquetSource, "read_span", fail)
    workspace.write_manifest(workspace.draw_images(2))
    with pytest.raises(StoppedError, match=r"m\.parquet cannot be read \(ConnectionResetError\); what was committed"):
        workspace.run_job()


def test_a_manifest_that_is_deleted_during_a_run_stops_it(workspace, monkeypatch):
    prepare = Preparer.prepare_pieces

    def delete_manifest(self, chunk):
        (workspace.folder / "m.parquet").unlink()
        return prepare(self, chunk)

    monkeypatch.setattr(Preparer, "prepare_pieces", delete_manifest)
    workspace.write_manifest(workspace.draw_images(2))
    with pytest.raises(StoppedError, match=r"m\.parquet cannot be read \(No such file or directory\); what was"):
        workspace.run_job()


def test_a_missing_kept_column_is_named(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(1))
    path = workspace.write_job_file()
    assert main(["check", str(path), "--set", "input.keep=nope"]) == 2
    assert "input.keep: the manifest has no column 'nope'" in capsys.readouterr().err


def test_a_run_that_is_refused_as_it_plans_leaves_no_question(workspace):
    """The next run may ask another one."""
    rows = workspace.draw_images(2)
    workspace.write_manifest([{**row, "id": "same"} for row in rows])
    with pytest.raises(JobError, match="id 'same' appears twice with different questions"):
        workspace.run_job()
    assert not (workspace.folder / "out/questions").exists()
    assert not (workspace.folder / "out/runs").exists()
    workspace.write_manifest(rows)
    assert workspace.run_job(prompt={"user": "What else?"}) == 0
