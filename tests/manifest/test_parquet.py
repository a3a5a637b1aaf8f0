"""Parquet manifests: any span gives the right rows, and reading in order decodes each row once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest.sources.parquet import ParquetSource

TABLE = pa.table({"a": list(range(1000)), "b": [f"x{n}" for n in range(1000)], "c": [[n, n] for n in range(1000)]})
spans = st.tuples(st.integers(0, 999), st.integers(1, 400)).map(lambda pair: (pair[0], min(1000, sum(pair))))
column_lists = st.sampled_from([None, ["a"], ["c", "a"], ["b"]])


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.parquet"
    pq.write_table(TABLE, path, row_group_size=130)
    return str(path)


@settings(max_examples=50, deadline=None)
@given(reads=st.lists(st.tuples(spans, column_lists), max_size=12))
def test_spans_and_columns_may_be_read_in_any_order(url, reads):
    source = ParquetSource(url)
    for (start, end), columns in reads:
        expected = TABLE.slice(start, end - start)
        assert source.read_span((start, end), columns).equals(expected if columns is None else expected.select(columns))


def test_reading_spans_in_order_opens_each_row_group_once(url, monkeypatch):
    opened_groups = []
    open_row_group = ParquetSource.open_row_group

    def record_group(self, row_group, columns):
        opened_groups.append(row_group)
        open_row_group(self, row_group, columns)

    monkeypatch.setattr(ParquetSource, "open_row_group", record_group)
    source = ParquetSource(url)
    for span in source.list_spans(17):
        source.read_span(span, ["a"])
    assert opened_groups == list(range(8))
