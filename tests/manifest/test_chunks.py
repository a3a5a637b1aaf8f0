"""What planning reads of a manifest, and what it must not."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError
from pipeline.job.spec import Job, PromptSection
from pipeline.manifest import chunks, files
from pipeline.manifest.sources.parquet import ParquetSource

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
    (file,) = files.list_manifest_files(job)
    cut = [chunk for chunk, _ in chunks.split_file(job, file, None)]
    _, again = chunks.read_chunk_rows(cut[0], job, None)
    return [chunk.rows_hash for chunk in cut], [row for row, *_ in again]


@pytest.mark.parametrize("cell", [PICTURE, [PICTURE, PICTURE], b"\x89PNG 1"])
def test_pictures_in_the_manifest_are_not_read_to_plan_and_all_there_to_work(cell, tmp_path, monkeypatch):
    asked = []
    read = ParquetSource.read_span
    monkeypatch.setattr(
        ParquetSource,
        "read_span",
        lambda self, span, columns: (asked.append([*columns]), read_span(self, span, columns))[1],
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
        chunks.compute_row_keys(pa.Table.from_pylist(each), chunks.ManifestColumns((), "chat", (), (), "id", ()), None)
        for each in rows
    )
    assert one != two


@pytest.mark.parametrize("name", ["id", "hint"])
def test_text_that_is_not_utf8_is_told_by_file_and_column(name, tmp_path):
    latin = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")])
    rows = pa.table({"id": ["a"], "hint": ["b"], "image": ["a.png"]}).drop_columns([name]).append_column(name, latin)
    pq.write_table(rows, tmp_path / "m.parquet")
    job = a_job(tmp_path, id="id").model_copy(update={"prompt": PromptSection(user="{hint}")})
    (file,) = files.list_manifest_files(job)
    with pytest.raises(JobError, match=rf"m\.parquet: a value of .*{name}.* cannot be read \('utf-8' codec"):
        list(chunks.split_file(job, file, None))
