"""Parquet manifests: the right rows, and each decoded once by who reads in order."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest.sources.parquet import ParquetSource

TABLE = pa.table({"a": list(range(1000)), "b": [f"x{n}" for n in range(1000)], "c": [[n, n] for n in range(1000)]})
span = st.tuples(st.integers(0, 999), st.integers(1, 400)).map(lambda pair: (pair[0], min(1000, sum(pair))))
columns = st.sampled_from([None, ["a"], ["c", "a"], ["b"]])


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.parquet"
    pq.write_table(TABLE, path, row_group_size=130)
    return str(path)


@settings(max_examples=50, deadline=None)
@given(asked=st.lists(st.tuples(span, columns), max_size=12))
def test_any_span_of_any_columns_in_any_order_is_what_the_file_holds(url, asked):
    source = ParquetSource(url)
    for (start, stop), wanted in asked:
        table = TABLE.slice(start, stop - start)
        assert source.read_span((start, stop), wanted).equals(table if wanted is None else table.select(wanted))


def test_spans_in_order_enter_each_row_group_once(url, monkeypatch):
    entered = []
    enter = ParquetSource.open_row_group
    monkeypatch.setattr(
        ParquetSource,
        "open_row_group",
        lambda self, group, wanted: (entered.append(group), open_row_group(self, group, wanted)),
    )
    source = ParquetSource(url)
    for each in source.list_spans(17):
        source.read_span(each, ["a"])
    assert entered == list(range(8))
