"""What planning reads of a manifest, and what it must not."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError
from pipeline.intake import manifest
from pipeline.intake.sources import jsonl
from pipeline.intake.sources.jsonl import Jsonl
from pipeline.intake.sources.parquet import Parquet
from pipeline.job import Job

PICTURE = {"bytes": b"\x89PNG 1", "path": "a.png"}


def a_job(folder, **given) -> Job:
    return Job.model_validate(
        {
            "name": "m",
            "input": {"manifest": str(folder), "media": "image", **given},
            "prompt": {"user": "What?"},
            "model": {"weights": "builtin:tiny"},
            "output": {"path": "out"},
        }
    )


def planned(folder, rows, **given) -> tuple[list[str], list[int]]:
    """Keys of the chunks, and the ids and questions of the first as they are when it is worked on."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    job = a_job(folder, **given)
    (file,) = manifest.files(job)
    chunks = [chunk for chunk, _ in manifest.cut(job, file, None)]
    _, again = manifest.rows_of(chunks[0], job, None)
    return [chunk.key for chunk in chunks], [row for row, *_ in again]


@pytest.mark.parametrize("cell", [PICTURE, [PICTURE, PICTURE], b"\x89PNG 1"])
def test_pictures_in_the_manifest_are_not_read_to_plan_and_all_there_to_work(cell, tmp_path, monkeypatch):
    asked = []
    read = Parquet.read
    monkeypatch.setattr(
        Parquet, "read", lambda self, span, columns: (asked.append([*columns]), read(self, span, columns))[1]
    )
    _, rows = planned(tmp_path, [{"n": "one", "image": cell}], id="n")
    assert asked[0] == ["n"]
    assert rows[0]["image"] == cell


def test_pictures_in_the_manifest_want_names_for_their_rows(tmp_path):
    with pytest.raises(JobError, match=r"column image holds bytes, so rows need names: set input\.id"):
        planned(tmp_path, [{"image": PICTURE}])


def test_bytes_in_a_chat_are_part_of_the_question(tmp_path):
    def chat(data):
        return [{"role": "user", "content": [{"type": "image", "bytes": data}]}]

    rows = [{"id": "x", "chat": chat(b"one")}], [{"id": "x", "chat": chat(b"two")}]
    one, two = (
        manifest.names(pa.Table.from_pylist(each), manifest.Columns((), "chat", (), (), "id", ()), None)
        for each in rows
    )
    assert one != two


def test_the_types_of_a_jsonl_file_are_settled_once(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "uri": "a.png"}) + "\n" for n in range(50)))
    source = Jsonl(str(path))
    times = []
    parse = source.parse

    def counted(text, schema, *at):
        times.append(schema is None)
        return parse(text, schema, *at)

    monkeypatch.setattr(source, "parse", counted)
    for span in source.spans(10):
        assert source.read(span).num_rows == 10
    source.schema()
    assert times.count(True) == 1


def rows_of_lines(tmp_path, lines, columns=None):
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    source = Jsonl(str(tmp_path / "m.jsonl"))
    return [row for span in source.spans(100) for row in source.read(span, columns).to_pylist()]


def test_text_of_a_jsonl_file_stays_as_it_is_written_also_where_it_looks_like_a_date(tmp_path):
    rows = [{"id": "2026-01-01", "seen": ["2026-01-01 10:00"]}, {"id": "2026-01-02", "seen": []}]
    assert rows_of_lines(tmp_path, [json.dumps(row).encode() for row in rows]) == rows


def test_a_column_of_a_jsonl_file_may_be_empty_for_long_and_then_hold_text(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 40)
    rows = [{"id": n, "hint": None if n < 9 else "late"} for n in range(10)]
    assert rows_of_lines(tmp_path, [json.dumps(row).encode() for row in rows]) == rows


def test_a_column_that_nobody_asks_for_may_change_its_type(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 40)
    lines = [json.dumps({"id": n, "score": 1 if n < 9 else "none"}).encode() for n in range(10)]
    assert rows_of_lines(tmp_path, lines, ["id"]) == [{"id": n} for n in range(10)]


@pytest.mark.parametrize(
    ("sample", "line", "said"),
    [
        (40, b'{"id": 1, "uri": 1.5}', ":13: column uri holds 1.5, and string before; give it one type in all rows"),
        (4000, b'{"id": 1, "uri": ["a"]}', ':13: column uri holds ["a"], and string before; give it one type'),
        (4000, b'{"id": "b", "uri": "a"}', ':13: column id holds "b", and int64 before; give it one type'),
        (4000, '{"id": 1, "uri": "Stra\xdfe"}'.encode("latin-1"), r":13: is not UTF-8 (invalid continuation byte at"),
        (4000, b'{"id": 1, "id": 2}', ":13: JSON parse error: Column(/id) was specified twice"),
        (4000, b"[]", ":13: is JSON but not an object: []"),
    ],
    ids=["number, late", "list", "text", "latin-1", "twice", "array"],
)
def test_a_line_of_a_jsonl_file_that_does_not_fit_is_named_with_what_is_wrong(
    tmp_path, monkeypatch, sample, line, said
):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", sample)
    with pytest.raises(JobError, match=re.escape(said)):
        rows_of_lines(tmp_path, [b'{"id": 1, "uri": "a"}', b"", *[b'{"id": 2, "uri": "b"}'] * 10, line])


def test_a_jsonl_file_without_rows_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(JobError, match=r"m\.jsonl:1: the file holds no rows"):
        Jsonl(str(tmp_path / "m.jsonl")).schema()
