"""JSONL as people write it: chats of every form, columns that start empty, numbers too long for a double."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest

from pipeline.errors import JobError
from pipeline.manifest.chat import ChatParser
from pipeline.manifest.media_cells import parse_media_cell, parse_number
from pipeline.manifest.sources import jsonl
from pipeline.manifest.sources.jsonl import JsonlSource, infer_type
from pipeline.types import MediaOptions, MediaRef, Turn


@pytest.fixture
def read(tmp_path):
    def read_rows(*rows, raw: bytes = b"") -> pa.Table:
        path = tmp_path / "m.jsonl"
        path.write_bytes(raw or b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        source = JsonlSource(str(path))
        return pa.concat_tables([source.read_span(span) for span in source.list_spans(2)])

    return read_rows


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2026-03-02", "2026-03-03"], ["2026-03-02", "2026-03-03"]),
        ([12345678901234567890, 12345678901234567891], ["12345678901234567890", "12345678901234567891"]),
        ([1, "a", None, True], ["1", "a", None, "true"]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([True, False], [True, False]),
        ([["a"], [], None], [["a"], [], None]),
        ([{"b": [1]}], ['{"b": [1]}']),
        (["x\ud83d"], ["x\ufffd"]),
    ],
)
def test_values_are_those_of_the_lines(values, expected, read):
    assert read(*({"v": value} for value in values))["v"].to_pylist() == expected


def test_a_byte_order_mark_and_empty_lines_are_skipped(read):
    assert read(raw=b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')["a"].to_pylist() == [1, 2]


def test_a_column_that_starts_empty_may_hold_anything_later(read, monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 20)
    rows = [{"fps": None, "image": None}] * 3 + [{"fps": 0.5, "image": ["a.png", {"url": "b.png"}]}]
    row = read(*rows).to_pylist()[-1]
    assert parse_number("fps", row["fps"], float, "") == 0.5
    assert parse_media_cell(row["image"], "/in", "image") == [MediaRef("/in/a.png"), MediaRef("/in/b.png")]


def test_chats_of_one_column_may_be_text_or_parts(read):
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        [{"role": "user", "content": "Hi"}],
    ]
    cells = read(*({"messages": chat} for chat in chats))["messages"].to_pylist()
    turns = [ChatParser("messages", [], MediaOptions(), "").parse_turns(cell) for cell in cells]
    assert turns == [(Turn("system", ("Be brief.",)), Turn("user", ("Hi",))), (Turn("user", ("Hi",)),)]


def test_an_unused_column_may_change_its_type(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 40)
    (tmp_path / "m.jsonl").write_text("".join(f'{{"id": {n}, "score": {n if n < 9 else "[]"}}}\n' for n in range(10)))
    source = JsonlSource(str(tmp_path / "m.jsonl"))
    (span,) = source.list_spans(100)
    assert source.read_span(span, ["id"]).to_pylist() == [{"id": n} for n in range(10)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"n": 1.5}', ":4: column n holds 1.5, and int64 before; give it one type in all rows"),
        (b'{"n": "b"}', ':4: column n holds "b", and int64 before; give it one type in all rows'),
        ('{"n": "Stra\xdfe"}'.encode("latin-1"), ":4: is not UTF-8 (invalid continuation byte at"),
        (b"[]", ":4: is JSON but not an object: []"),
    ],
)
def test_a_wrong_line_is_named_with_its_problem(line, expected, read, monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 10)
    with pytest.raises(JobError) as raised:
        read(raw=b"\n".join([b'{"n": 1}', b"", b'{"n": 2}', line]))
    assert expected in str(raised.value)


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(JobError, match=r"m\.jsonl:1: the file holds no rows"):
        JsonlSource(str(tmp_path / "m.jsonl")).read_schema()


def test_types_are_inferred_once(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "uri": "a.png"}) + "\n" for n in range(50)))
    source = JsonlSource(str(path))
    inferred_columns = []
    monkeypatch.setattr(jsonl, "infer_type", lambda values: inferred_columns.append(values) or infer_type(values))
    for span in source.list_spans(10):
        assert source.read_span(span).num_rows == 10
    source.read_schema()
    assert len(inferred_columns) == 2


def test_a_path_may_begin_with_a_bracket():
    assert parse_media_cell("[1] scan.png", "/in", "image") == [MediaRef("/in/[1] scan.png")]


def test_a_compressed_file_is_decompressed_once_for_all_spans_in_order(tmp_path, monkeypatch):
    """Each span in turn costs what it holds; one that comes again is read all the same."""
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"id": "r%d", "note": "%s"}\n' % (n, b"x" * 500) for n in range(2000))))
    source = JsonlSource(f"file://{path}")
    spans = list(source.list_spans(20))
    source.read_schema()
    decompressed = []
    read = gzip._GzipReader.read

    def count_bytes(reader, size=-1):
        data = read(reader, size)
        decompressed.append(len(data))
        return data

    monkeypatch.setattr(gzip._GzipReader, "read", count_bytes)
    ids = [row_id for span in spans for row_id in source.read_span(span)["id"].to_pylist()]
    assert ids == [f"r{number}" for number in range(2000)]
    assert sum(decompressed) <= 1.1 * spans[-1][1]
    assert source.read_span(spans[3], ["id"])["id"].to_pylist() == ids[60:80]
