"""Users query typed answers directly, as in SELECT answer.total, without parsing or casting."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema.columns import to_arrow_array
from pipeline.schema.schema_loader import load_schema
from pipeline.schema.validate import validate_answer

LINE = {"description": "Paper", "amount": "45.00"}
INVOICE = {"number": "7", "issued": "2026-03-02", "seller": {"name": "Acme"}, "currency": "EUR", "taxes": []}


@pytest.fixture
def part_folder(tmp_path: Path) -> Path:
    """Two parts: answers in one, nothing but a null in the other."""
    schema = load_schema("invoice", base_folder=Path())
    assert schema is not None
    euro = validate_answer(INVOICE | {"lines": [LINE, LINE], "total": "90.00"}, schema)[0]
    dollar = validate_answer(INVOICE | {"currency": "USD", "lines": [LINE], "total": "45"}, schema)[0]
    for name, ids, answers in (("a", ["1", "2"], [euro, dollar]), ("b", ["3"], [None])):
        table = pa.table({"id": ids, "answer": to_arrow_array(answers, schema.answer_field)})
        (tmp_path / "data" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "data" / name / "part.parquet")
    return tmp_path / "data"


def test_duckdb_reads_typed_answers(part_folder: Path) -> None:
    query = f"SELECT id, answer.total, len(answer.lines) FROM '{part_folder}/*/*.parquet' WHERE answer.currency = 'EUR'"
    assert duckdb.sql(query).fetchall() == [("1", Decimal("90.0000"), 2)]
    columns = "answer.issued, sum(answer.total), answer.lines[1].amount"
    found = duckdb.sql(f"SELECT {columns} FROM '{part_folder}/*/*.parquet' GROUP BY ALL").fetchall()
    assert (date(2026, 3, 2), Decimal("135.0000"), Decimal("45.0000")) in found


def test_pandas_reads_typed_answers(part_folder: Path) -> None:
    frame = pd.read_parquet(part_folder / "a" / "part.parquet")
    assert frame["answer"][0]["total"] == Decimal("90.0000")
    assert frame["answer"][0]["issued"] == date(2026, 3, 2)
    flat = pd.read_parquet(part_folder / "a" / "part.parquet", dtype_backend="pyarrow")["answer"].struct.field("total")
    assert flat.sum() == Decimal("135.0000")
