"""Planning reads no more of a manifest than it must, and workers get the same rows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError
from pipeline.job.spec import Job, PromptSection
from pipeline.manifest.chunks import read_chunk_rows, split_file
from pipeline.manifest.files import list_manifest_files
from pipeline.manifest.row_keys import hash_question
from pipeline.manifest.row_reader import RowReader
from pipeline.manifest.sources.parquet import ParquetSource

IMAGE_CELL = {"bytes": b"\x89PNG 1", "path": "a.png"}


def make_job(folder, **input_section) -> Job:
    return Job.model_validate(
        {
            "name": "m",
            "input": {"manifest": str(folder), "media": "image", **input_section},
            "prompt": {"user": "What?"},
            "model": {"weights": "builtin:tiny"},
            "output": {"path": "out"},
        }
    )


def read_first_chunk(folder, rows, **input_section):
    """Plan a Parquet manifest, then read its first chunk as a worker does."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    job = make_job(folder, **input_section)
    (file,) = list_manifest_files(job)
    chunks = [chunk for chunk, _ in split_file(job, file, None)]
    return read_chunk_rows(chunks[0], RowReader(job, file, None))


@pytest.mark.parametrize("cell", [IMAGE_CELL, [IMAGE_CELL, IMAGE_CELL], b"\x89PNG 1"])
def test_planning_does_not_read_images_in_the_manifest_and_workers_do(cell, tmp_path, monkeypatch):
    columns_read = []
    read_span = ParquetSource.read_span

    def record_columns(self, span, columns):
        columns_read.append([*columns])
        return read_span(self, span, columns)

    monkeypatch.setattr(ParquetSource, "read_span", record_columns)
    (row,) = read_first_chunk(tmp_path, [{"n": "one", "image": cell}], id="n")
    assert columns_read[0] == ["n"]
    assert row.values["image"] == cell


def test_rows_with_images_in_the_manifest_need_an_id_column(tmp_path):
    with pytest.raises(JobError, match=r"column image holds bytes, so its rows need ids: set input\.id"):
        read_first_chunk(tmp_path, [{"image": IMAGE_CELL}])


def test_bytes_in_a_chat_are_part_of_the_question():
    def hash_chat(data):
        return hash_question({"chat": [{"role": "user", "content": [{"type": "image", "bytes": data}]}]}, {})

    assert hash_chat(b"one") != hash_chat(b"two")


@pytest.mark.parametrize("name", ["id", "hint"])
def test_text_that_is_not_utf8_is_reported_with_file_and_column(name, tmp_path):
    latin = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")])
    rows = pa.table({"id": ["a"], "hint": ["b"], "image": ["a.png"]}).drop_columns([name]).append_column(name, latin)
    pq.write_table(rows, tmp_path / "m.parquet")
    job = make_job(tmp_path, id="id").model_copy(update={"prompt": PromptSection(user="{hint}")})
    (file,) = list_manifest_files(job)
    with pytest.raises(JobError, match=rf"m\.parquet: a value of .*{name}.* cannot be read \('utf-8' codec"):
        list(split_file(job, file, None))
