"""The clean table of a job's answers."""

from __future__ import annotations

import json

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.export.table import export_table
from pipeline.job.spec import Job
from pipeline.output.store import OutputStore


class Shelf:
    """Exports of one workspace's output."""

    def __init__(self, workspace):
        self.workspace, self.target, self.said = workspace, workspace.folder / "table", []

    def export(self, *, rows_per_file=1000, partition_by=(), **sections):
        self.said.clear()
        job = Job.model_validate(self.workspace.build_job(**sections))
        export_table(
            job, str(self.target), rows_per_file=rows_per_file, partition_by=partition_by, say=self.said.append
        )

    def files(self):
        return sorted(self.target.rglob("*.parquet"))

    def ids(self):
        return duckdb.sql(f"SELECT id FROM '{self.target}/**/*.parquet'").df()["id"].tolist()


@pytest.fixture
def shelf(workspace):
    return Shelf(workspace)


def test_each_answered_row_of_the_manifest_is_there_once_in_large_files_and_in_order(workspace, shelf):
    workspace.write_manifest([*workspace.draw_images(11), *workspace.write_broken_images(1)])
    workspace.run_job(output={"chunk_rows": 2})
    shelf.export(rows_per_file=4, output={"chunk_rows": 2})
    assert shelf.said[-2:] == [
        f"{shelf.target}: 11 of 12 rows",
        "missing: 1 rows that failed (run --retry-errors), 0 not asked yet (run)",
    ]
    assert sorted(shelf.ids()) == sorted(f"r{number}" for number in range(11))
    assert [pq.read_metadata(path).num_rows for path in shelf.files()] != []
    assert sorted(pq.read_metadata(path).num_rows for path in shelf.files()) == [3, 4, 4]
    assert len({pq.read_schema(path) for path in shelf.files()}) == 1
    frame = pd.concat(pd.read_parquet(path) for path in shelf.files())
    assert set(frame["hint"]) == {"h"}
    firsts = [pd.read_parquet(path)["id"].tolist() for path in shelf.files()]
    assert all(ids == sorted(ids, key=lambda name: int(name[1:])) for ids in firsts)


def test_answers_of_later_generations_and_of_other_forms_of_the_manifest_are_in_it_and_removed_rows_are_not(
    workspace, shelf
):
    rows, bad = workspace.draw_images(9), workspace.write_broken_images(1)
    workspace.write_manifest([*rows[:7], *bad])
    workspace.run_job()
    (workspace.folder / rows[0]["image"]).rename(workspace.folder / bad[0]["image"])
    workspace.draw_images(1)
    assert workspace.run_job(retry_kind="") == 0
    workspace.write_manifest([rows[8], *rows[1:7][::-1], *bad])  # without r0, with r8
    assert workspace.run_job() == 0
    shelf.export()
    assert sorted(shelf.ids()) == ["bad0", "r1", "r2", "r3", "r4", "r5", "r6", "r8"]
    assert shelf.said[-1] == f"{shelf.target}: 8 of 8 rows"
    assert len(workspace.list_answered_ids()) == 9


def test_a_row_whose_question_changed_is_there_with_its_newest_answer(workspace, shelf):
    rows = workspace.draw_images(4)
    workspace.write_manifest(rows)
    workspace.run_job()
    workspace.write_manifest([rows[0], {**rows[1], "image": rows[2]["image"]}, *rows[2:]])
    workspace.run_job()
    shelf.export()
    found = duckdb.sql(f"SELECT id, media[1].uri AS uri FROM '{shelf.target}/*.parquet' WHERE id = 'r1'").fetchall()
    assert [(name, uri.rpartition("/")[2]) for name, uri in found] == [("r1", "2.png")]
    assert len(shelf.ids()) == 4


def test_a_folder_with_something_else_in_it_is_no_target(workspace, shelf):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job()
    shelf.target = workspace.folder / "pics"
    with pytest.raises(OutputError, match=r"pics holds 0\.png and is no export; export to an empty folder"):
        shelf.export()
    assert not list((workspace.folder / "pics").glob("*.json"))


def test_partitions_are_hives(workspace, shelf):
    rows = workspace.draw_images(6)
    workspace.write_manifest([{**row, "hint": ("a b", "ü/x", None)[number % 3]} for number, row in enumerate(rows)])
    workspace.run_job()
    shelf.export(partition_by=["hint"])
    assert sorted(path.parent.name for path in shelf.files()) == [
        "hint=%C3%BC%2Fx",
        "hint=__HIVE_DEFAULT_PARTITION__",
        "hint=a%20b",
    ]
    found = duckdb.sql(
        f"SELECT hint, count(*) FROM read_parquet('{shelf.target}/*/*.parquet', hive_partitioning=true) GROUP BY ALL"
    ).fetchall()
    assert sorted(found, key=str) == [("a b", 2), ("ü/x", 2), (None, 2)]


def test_an_interrupted_export_goes_on_and_does_not_do_files_again(workspace, shelf, monkeypatch):
    workspace.write_manifest(workspace.draw_images(8))
    workspace.run_job(output={"chunk_rows": 2})
    upload = OutputStore.upload_file

    def die(store, name, source):
        if shelf.files():
            raise KeyboardInterrupt
        upload(store, name, source)

    monkeypatch.setattr(OutputStore, "upload_file", die)
    with pytest.raises(KeyboardInterrupt):
        shelf.export(rows_per_file=4, output={"chunk_rows": 2})
    monkeypatch.setattr(OutputStore, "upload_file", upload)
    (first,) = shelf.files()
    before = first.stat().st_mtime_ns
    assert not (shelf.target / "_SUCCESS").exists()
    shelf.export(rows_per_file=4, output={"chunk_rows": 2})
    assert first.stat().st_mtime_ns == before
    assert sorted(shelf.ids()) == [f"r{number}" for number in range(8)]
    assert (shelf.target / "_SUCCESS").exists()


def test_a_folder_holds_one_export(workspace, shelf):
    workspace.write_manifest(workspace.draw_images(4))
    workspace.run_job()
    shelf.export()
    shelf.export()
    assert len(shelf.files()) == 1
    with pytest.raises(OutputError, match=r"holds another export \(rows_per_file: was 1000, is 2\); export to another"):
        shelf.export(rows_per_file=2)
    workspace.write_manifest(workspace.draw_images(6))
    workspace.run_job()
    with pytest.raises(OutputError, match=r"holds another export \(parts: was 1, is 2, bytes: was"):
        shelf.export()
    said = json.loads((shelf.target / "_export.json").read_text())
    assert said["columns"]["tokens"]["is"].startswith("of the vision")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("colour", "there is no such column; there are id, hint, text"),
        ("media", "makes no folders"),
        ("logprob", "makes"),
    ],
)
def test_a_column_that_makes_no_folders_is_refused_before_anything_is_written(column, reason, workspace, shelf):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(OutputError, match=reason):
        shelf.export(partition_by=[column])
    assert not shelf.target.exists()


def test_the_command_says_what_is_missing_and_what_was_never_asked(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(5))
    job, target = str(workspace.write_job_file()), str(workspace.folder / "table")
    assert main(["export", job, target]) == 2
    assert "holds no answers to this question; run the job first" in capsys.readouterr().err
    assert main(["run", job, "--local", "--limit", "3"]) == 0
    assert main(["export", job, target, "--partition-by", "hint"]) == 0
    out = capsys.readouterr().out
    assert f"{target}: 3 of 5 rows\n" in out
    assert "missing: 0 rows that failed (run --retry-errors), 2 not asked yet (run)" in out
