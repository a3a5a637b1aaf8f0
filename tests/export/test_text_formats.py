"""JSON Lines and CSV hold the values of the table, as DuckDB and pandas read them."""

from __future__ import annotations

import json

import duckdb
import pandas as pd
import pytest

from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.job.spec import Job

SELLER = 'Bäcker "Süß", Söhne\n& Co'
INVOICE = {
    "number": "007",
    "issued": "2026-11-29",
    "seller": {"name": SELLER},
    "currency": "EUR",
    "lines": [{"description": "a;b", "quantity": "2", "unit_price": "1.50", "amount": "3.00"}],
    "taxes": [],
    "total": "3.00",
}


@pytest.fixture
def export(workspace):
    """Exports answers about three pictures, one of them without text in a kept column."""
    rows = workspace.draw_images(3)
    rows[1]["hint"], rows[2]["hint"] = None, ""
    workspace.write_manifest(rows)
    sections = {"answer": {"schema": "invoice"}, "engine": {"default": json.dumps(INVOICE)}}
    workspace.run_job(**sections)

    def run_export(format_name, **options):
        target = workspace.folder / format_name
        job = Job.model_validate(workspace.build_job(**sections))
        export_job(job, str(target), format_name, ExportOptions(**options), lambda _: None)
        return target

    return run_export


def test_lines_of_json_have_the_values_of_the_table(export):
    [table] = export("table").glob("*.parquet")
    [lines] = export("jsonl").glob("*.jsonl")
    expected = duckdb.sql(f"SELECT * FROM '{table}'").df().to_dict("records")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [list(row) for row in rows] == [list(row) for row in expected]
    assert [row["id"] for row in rows] == ["r0", "r1", "r2"]
    assert [row["hint"] for row in rows] == ["h", None, ""]
    for row in rows:
        assert row["answer"] == {
            **INVOICE,
            "seller": {"name": SELLER, "address": None, "tax_id": None},
            "due": None,
            "buyer": None,
            "net": None,
            "lines": [{"description": "a;b", "quantity": 2.0, "unit_price": 1.5, "amount": 3.0}],
            "total": 3.0,
        }
    read = duckdb.sql(f"SELECT answer.seller.name, answer.total, media[1].width FROM '{lines}'").fetchall()
    assert read == [(SELLER, 3.0, 40)] * 3


def test_csv_has_a_column_for_each_value(export):
    [path] = export("csv").glob("*.csv")
    frame = pd.read_csv(path, dtype={"answer.number": str}, keep_default_na=False)
    assert frame["id"].tolist() == ["r0", "r1", "r2"]
    assert frame["answer.seller.name"].tolist() == [SELLER] * 3
    assert frame["answer.number"].tolist() == ["007"] * 3
    assert frame["answer.total"].tolist() == [3.0] * 3
    assert [json.loads(cell)[0]["amount"] for cell in frame["answer.lines"]] == [3.0] * 3
    assert [json.loads(cell)[0]["width"] for cell in frame["media"]] == [40] * 3
    hints = duckdb.sql(f"SELECT hint FROM read_csv('{path}', all_varchar=true, allow_quoted_nulls=false)").fetchall()
    assert hints == [("h",), (None,), ("",)]


@pytest.mark.parametrize("format_name", ["jsonl", "csv"])
def test_splits_have_folders(export, format_name):
    target = export(format_name, splits=(("train", 0.5), ("val", 0.5)))
    counts = {
        split: sum(len(pd.read_json(path, lines=True)) for path in (target / split).glob("*.jsonl"))
        if format_name == "jsonl"
        else sum(len(pd.read_csv(path)) for path in (target / split).glob("*.csv"))
        for split in ("train", "val")
    }
    assert sum(counts.values()) == 3
    assert counts["train"] > 0
    assert not [path for path in target.iterdir() if path.suffix in (".csv", ".jsonl")]
