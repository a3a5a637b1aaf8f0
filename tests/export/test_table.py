"""The clean table of a job's answers."""

from __future__ import annotations

import json
import shutil

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.job.spec import Job
from pipeline.output.dataset import Dataset


class TableExport:
    """The table of one workspace's job."""

    def __init__(self, workspace):
        self.workspace, self.target, self.messages = workspace, workspace.folder / "table", []

    def run(self, *, rows_per_file=1000, partition_by=(), **sections):
        self.messages.clear()
        job = Job.model_validate(self.workspace.build_job(**sections))
        options = ExportOptions(rows_per_file, tuple(partition_by))
        return export_job(job, str(self.target), "table", options, self.messages.append)

    def list_files(self):
        return sorted(self.target.rglob("*.parquet"))

    def read_ids(self):
        return duckdb.sql(f"SELECT id FROM '{self.target}/**/*.parquet'").df()["id"].tolist()


@pytest.fixture
def table_export(workspace):
    return TableExport(workspace)


def test_each_answered_row_is_exported_once_in_manifest_order_in_large_files(workspace, table_export):
    workspace.write_manifest([*workspace.draw_images(11), *workspace.write_broken_images(1)])
    workspace.run_job(output={"chunk_rows": 2})
    table_export.run(rows_per_file=4, output={"chunk_rows": 2})
    assert table_export.messages[-2:] == [
        f"{table_export.target}: 11 of 12 rows",
        "missing: 1 row that failed (run --retry-errors), 0 not asked yet (run)",
    ]
    assert sorted(table_export.read_ids()) == sorted(f"r{number}" for number in range(11))
    assert sorted(pq.read_metadata(path).num_rows for path in table_export.list_files()) == [3, 4, 4]
    assert len({pq.read_schema(path) for path in table_export.list_files()}) == 1
    frame = pd.concat(pd.read_parquet(path) for path in table_export.list_files())
    assert set(frame["hint"]) == {"h"}
    firsts = [pd.read_parquet(path)["id"].tolist() for path in table_export.list_files()]
    assert all(ids == sorted(ids, key=lambda name: int(name[1:])) for ids in firsts)


def test_failed_rows_are_counted_from_the_notes_of_commits(workspace, table_export, monkeypatch):
    workspace.write_manifest([*workspace.draw_images(2), *workspace.write_broken_images(3)])
    workspace.run_job(output={"chunk_rows": 1})
    monkeypatch.delattr(Dataset, "read_dead_letters")
    table_export.run(output={"chunk_rows": 1})
    assert table_export.messages[-1] == "missing: 3 rows that failed (run --retry-errors), 0 not asked yet (run)"


def test_failed_rows_that_a_retry_or_another_manifest_answered_are_not_missing(workspace, table_export):
    rows, bad = workspace.draw_images(3), workspace.write_broken_images(3)
    workspace.write_manifest([*rows, *bad])
    assert workspace.run_job() == 3
    (workspace.folder / bad[0]["image"]).write_bytes((workspace.folder / rows[0]["image"]).read_bytes())
    assert workspace.run_job(retry_kind="") == 3
    table_export.run()
    assert table_export.messages[-1] == "missing: 2 rows that failed (run --retry-errors), 0 not asked yet (run)"
    (workspace.folder / bad[1]["image"]).write_bytes((workspace.folder / rows[0]["image"]).read_bytes())
    workspace.write_manifest([*bad[::-1], *rows])
    assert workspace.run_job() == 3
    workspace.write_manifest([*rows, *bad])
    shutil.rmtree(table_export.target)
    table_export.run()
    assert sorted(table_export.read_ids()) == ["bad0", "bad1", "r0", "r1", "r2"]
    assert table_export.messages[-1] == "missing: 1 row that failed (run --retry-errors), 0 not asked yet (run)"


def test_retried_and_moved_rows_are_exported_and_removed_rows_are_not(workspace, table_export):
    rows, bad = workspace.draw_images(9), workspace.write_broken_images(1)
    workspace.write_manifest([*rows[:7], *bad])
    workspace.run_job()
    (workspace.folder / rows[0]["image"]).rename(workspace.folder / bad[0]["image"])
    workspace.draw_images(1)
    assert workspace.run_job(retry_kind="") == 0
    workspace.write_manifest([rows[8], *rows[1:7][::-1], *bad])  # without r0, with r8
    assert workspace.run_job() == 0
    table_export.run()
    assert sorted(table_export.read_ids()) == ["bad0", "r1", "r2", "r3", "r4", "r5", "r6", "r8"]
    assert table_export.messages[-1] == f"{table_export.target}: 8 of 8 rows"
    assert len(workspace.list_answered_ids()) == 9


def test_a_row_whose_question_changed_is_exported_with_its_newest_answer(workspace, table_export):
    rows = workspace.draw_images(4)
    workspace.write_manifest(rows)
    workspace.run_job()
    workspace.write_manifest([rows[0], {**rows[1], "image": rows[2]["image"]}, *rows[2:]])
    workspace.run_job()
    table_export.run()
    found = duckdb.sql(
        f"SELECT id, media[1].uri AS uri FROM '{table_export.target}/*.parquet' WHERE id = 'r1'"
    ).fetchall()
    assert [(name, uri.rpartition("/")[2]) for name, uri in found] == [("r1", "2.png")]
    assert len(table_export.read_ids()) == 4


def test_partitions_are_hive_folders(workspace, table_export):
    rows = workspace.draw_images(6)
    workspace.write_manifest([{**row, "hint": ("a b", "ü/x", None)[number % 3]} for number, row in enumerate(rows)])
    workspace.run_job()
    table_export.run(partition_by=["hint"])
    assert sorted(path.parent.name for path in table_export.list_files()) == [
        "hint=%C3%BC%2Fx",
        "hint=__HIVE_DEFAULT_PARTITION__",
        "hint=a%20b",
    ]
    files = f"read_parquet('{table_export.target}/*/*.parquet', hive_partitioning=true)"
    counts = duckdb.sql(f"SELECT hint, count(*) FROM {files} GROUP BY ALL").fetchall()
    assert sorted(counts, key=str) == [("a b", 2), ("ü/x", 2), (None, 2)]


def test_the_columns_are_described(workspace, table_export):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job()
    table_export.run()
    claim = json.loads((table_export.target / "_export.json").read_text())
    assert list(claim) == ["fingerprint", "rows_per_file", "partition_by", "parts", "bytes", "sources", "columns"]
    assert claim["columns"]["tokens"]["type"].startswith("struct<vision: int64")
    assert all(claim["columns"][name]["is"] for name in claim["columns"] if name != "hint")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("colour", "there is no such column; there are id, hint, text"),
        ("media", "cannot name folders; text, whole numbers"),
        ("logprob", "type double cannot name folders"),
    ],
)
def test_a_column_that_cannot_partition_is_refused_before_anything_is_written(column, reason, workspace, table_export):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(OutputError, match=reason):
        table_export.run(partition_by=[column])
    assert not table_export.target.exists()


def test_the_command_says_how_many_rows_are_missing(workspace, capsys):
    workspace.write_manifest([*workspace.draw_images(4), *workspace.write_broken_images(1)])
    job, target = str(workspace.write_job_file()), workspace.folder / "table"
    assert main(["export", job, str(target)]) == 2
    assert "holds no answers to this question; run the job first" in capsys.readouterr().err
    assert main(["run", job, "--local", "--limit", "3"]) == 0
    missing = "missing: 0 rows that failed (run --retry-errors), 2 not asked yet (run)"
    assert main(["export", job, str(target), "--require-complete"]) == 4
    said, next_command = capsys.readouterr().out.splitlines()
    assert said == f"nothing is exported; {missing}"
    assert next_command.endswith(f"pipeline run {job}")
    assert not target.exists()
    assert main(["export", job, str(target), "--partition-by", "hint"]) == 4
    assert f"{target}: 3 of 5 rows\n{missing}\n" in capsys.readouterr().out
    assert not (target / "_SUCCESS").exists()


def test_the_exit_code_of_an_export_tells_of_failed_rows(workspace, capsys):
    workspace.write_manifest([*workspace.draw_images(1), *workspace.write_broken_images(1)])
    job, target = str(workspace.write_job_file()), workspace.folder / "table"
    assert main(["run", job, "--local"]) == 3
    assert main(["export", job, str(target), "--require-complete"]) == 3
    assert not target.exists()
    assert main(["export", job, str(target)]) == 3
    assert "pipeline status " in capsys.readouterr().out.splitlines()[-1]
    assert (target / "_SUCCESS").exists()
    assert main(["export", job, str(target), "--allow-errors"]) == 0


def test_rows_of_a_deleted_part_are_missing_and_can_be_asked_again(workspace, table_export):
    rows = workspace.draw_images(4)
    workspace.write_manifest(rows[:2])
    workspace.run_job()
    workspace.write_manifest(rows[::-1])
    workspace.run_job()  # its chunk leaves out the rows of the other part
    oldest = min((workspace.folder / "out/data").glob("fp=*/*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    oldest.unlink()
    assert workspace.run_job() == 0
    assert table_export.run() == 4
    assert table_export.messages[-1].endswith("2 in a part that was deleted (run with another output.chunk_rows)")
    assert workspace.run_job(output={"chunk_rows": 3}) == 0
    shutil.rmtree(table_export.target)
    assert table_export.run() == 0
    assert sorted(table_export.read_ids()) == ["r0", "r1", "r2", "r3"]


def test_a_chunk_whose_rows_all_failed_adds_nothing(workspace, table_export):
    workspace.write_manifest([*workspace.write_broken_images(2), *workspace.draw_images(2)])
    workspace.run_job(output={"chunk_rows": 2})
    table_export.run(output={"chunk_rows": 2})
    assert table_export.read_ids() == ["r0", "r1"]
