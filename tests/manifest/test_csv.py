"""CSV manifests: cells are text as written."""

from __future__ import annotations

import gzip

import pytest

from pipeline.errors import JobError
from pipeline.manifest.sources.csv import CsvSource


def read_rows(path, data: bytes, columns=None):
    path.write_bytes(data)
    source = CsvSource(str(path))
    return [row for span in source.list_spans(2) for row in source.read_span(span, columns).to_pylist()]


def test_cells_are_text_as_written_and_empty_cells_are_null(tmp_path):
    data = b'id,image,day\n007,a.png,2026-01-01\n008,"b, c.png",\n1e3,"two\nlines",""\n'
    assert read_rows(tmp_path / "m.csv", data) == [
        {"id": "007", "image": "a.png", "day": "2026-01-01"},
        {"id": "008", "image": "b, c.png", "day": None},
        {"id": "1e3", "image": "two\nlines", "day": ""},
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("separator", [b",", b";", b"\t"])
def test_the_header_decides_the_separator_and_may_follow_a_byte_order_mark(tmp_path, separator, mark):
    data = mark + b"id|image\r\n01|a.png\r\n".replace(b"|", separator)
    assert read_rows(tmp_path / "m.csv", data) == [{"id": "01", "image": "a.png"}]


def test_columns_are_selected_and_compressed_files_are_read(tmp_path):
    data = gzip.compress(b"id,image\n1,a.png\n2,b.png\n3,c.png\n")
    assert read_rows(tmp_path / "m.csv.gz", data, ["image"]) == [{"image": f"{name}.png"} for name in "abc"]


@pytest.mark.parametrize("data", [b"", b"id,image\n1\n", "id,image\nStra\xdfe,a\n".encode("latin-1")])
def test_a_file_that_is_not_csv_is_named(tmp_path, data):
    with pytest.raises(JobError, match=r"m\.csv: is not CSV in UTF-8 \("):
        read_rows(tmp_path / "m.csv", data)
