"""Delta, Iceberg and Lance tables get each answered row once, however often and with whatever interruptions."""

from __future__ import annotations

import json

import deltalake
import lance
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.job.spec import Job
from pipeline.output.store import OutputStore

pytestmark = pytest.mark.process

INVOICE = {
    "number": "007",
    "issued": "2026-11-29",
    "seller": {"name": "Süß & Co"},
    "currency": "EUR",
    "lines": [{"description": "a", "quantity": "2", "unit_price": "1.50", "amount": "3.00"}],
    "taxes": [],
    "total": "3.00",
}
SECTIONS = {
    "answer": {"schema": "invoice"},
    "engine": {"default": json.dumps(INVOICE)},
    "output": {"chunk_rows": 2},
}


class TableExport:
    def __init__(self, workspace, kind):
        self.workspace, self.kind = workspace, kind
        self.target = "iceberg://lake/labels.invoices" if kind == "iceberg" else f"{workspace.folder}/table"

    def open_catalog(self, name="lake"):
        folder = self.workspace.folder
        return SqlCatalog(name, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")

    def run(self, **options):
        messages = []
        job = Job.model_validate(self.workspace.build_job(**SECTIONS))
        export_job(job, self.target, self.kind, ExportOptions(**options), messages.append)
        return messages

    def read_rows(self):
        if self.kind == "delta":
            rows = deltalake.DeltaTable(self.target).to_pyarrow_table()
        elif self.kind == "lance":
            rows = lance.dataset(self.target).to_table()
        else:
            rows = self.open_catalog().load_table("labels.invoices").scan().to_arrow()
        return sorted(rows.to_pylist(), key=lambda row: row["id"])

    def count_commits(self):
        if self.kind == "delta":
            return len(deltalake.DeltaTable(self.target).history())
        if self.kind == "lance":
            return len(lance.dataset(self.target).versions())
        return len(self.open_catalog().load_table("labels.invoices").snapshots())


@pytest.fixture(params=["delta", "iceberg", "lance"])
def table_export(request, workspace, monkeypatch):
    table = TableExport(workspace, request.param)
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", table.open_catalog)
    return table


def test_a_table_has_the_values_and_grows_by_new_rows(workspace, table_export):
    rows = [*workspace.draw_images(5), *workspace.write_broken_images(1)]
    workspace.write_manifest(rows[:3])
    workspace.run_job(**SECTIONS)
    assert table_export.run()[-1] == f"{table_export.target}: 3 rows added"
    job = Job.model_validate(workspace.build_job(**SECTIONS))
    export_job(job, str(workspace.folder / "plain"), "table", ExportOptions(), lambda _: None)
    [plain] = (workspace.folder / "plain").glob("*.parquet")
    assert table_export.read_rows() == pq.read_table(plain).to_pylist()
    commits = table_export.count_commits()
    assert table_export.run()[-1] == f"{table_export.target}: 0 rows added"
    assert table_export.count_commits() == commits
    workspace.write_manifest(rows)
    workspace.run_job(**SECTIONS)
    assert f"{table_export.target}: 2 rows added" in table_export.run()
    (workspace.folder / rows[-1]["image"]).write_bytes((workspace.folder / rows[0]["image"]).read_bytes())
    workspace.run_job(retry_kind="decode", **SECTIONS)
    assert f"{table_export.target}: 1 row added" in table_export.run()
    assert [row["id"] for row in table_export.read_rows()] == ["bad0", "r0", "r1", "r2", "r3", "r4"]


def test_an_export_that_was_killed_after_a_commit_adds_no_row_twice(workspace, table_export, monkeypatch):
    rows = workspace.draw_images(8)
    workspace.write_manifest(rows[:6])
    workspace.run_job(**SECTIONS)
    create_object = OutputStore.create_object

    def interrupt_second_note(store, name, data):
        if name.endswith(".json") and [name for name in store.list_names("_groups") if name.endswith(".json")]:
            raise KeyboardInterrupt
        return create_object(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputStore, "create_object", interrupt_second_note)
        with pytest.raises(KeyboardInterrupt):
            table_export.run(rows_per_file=2)
    assert len(table_export.read_rows()) == 4, "the second group is in the table, and has no note"
    workspace.write_manifest(rows)
    workspace.run_job(**SECTIONS)
    table_export.run(rows_per_file=2)
    assert [row["id"] for row in table_export.read_rows()] == [f"r{number}" for number in range(8)]


def test_rows_that_do_not_match_are_left_out(workspace, table_export):
    workspace.write_manifest(workspace.draw_images(5))
    workspace.run_job(**SECTIONS)
    assert table_export.run(where="id in ('r1', 'r4')")[-1] == f"{table_export.target}: 2 rows added"
    assert [row["id"] for row in table_export.read_rows()] == ["r1", "r4"]
    with pytest.raises(OutputError, match="holds another export"):
        table_export.run()


def test_a_table_with_other_columns_is_not_appended_to(workspace, table_export, monkeypatch):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job(**SECTIONS)
    table_export.run()
    monkeypatch.setitem(SECTIONS, "input", {"keep": []})
    with pytest.raises(OutputError, match=r"holds another export .*other answers or kept values"):
        table_export.run()


def test_a_table_that_was_exported_is_a_manifest(workspace, table_export):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job(**SECTIONS)
    table_export.run()
    manifest = {"manifest": table_export.target, "media": "hint", "keep": []}
    workspace.run_job(input=manifest, prompt={"user": "{text}"}, output={"path": f"{workspace.folder}/again"})
    assert len(workspace.read_dead_letters("again")) == 3, "hints are no pictures, and the rows are read"


def test_an_iceberg_target_is_a_table_of_a_catalog(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job(**SECTIONS)
    job = str(workspace.write_job_file(**SECTIONS))
    assert main(["export", job, str(workspace.folder / "table"), "--to", "iceberg"]) == 2
    assert "name a table of a catalog, iceberg://CATALOG/namespace.table" in capsys.readouterr().err
    assert main(["export", job, "iceberg://none/a.b", "--to", "iceberg"]) == 2
    assert "iceberg://none/a.b: " in capsys.readouterr().err


def test_an_export_without_answers_creates_no_table(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(1))
    table_export = TableExport(workspace, "iceberg")
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", table_export.open_catalog)
    with pytest.raises(OutputError, match="holds no answers to this question"):
        table_export.run()
    assert not table_export.open_catalog().namespace_exists("labels")
