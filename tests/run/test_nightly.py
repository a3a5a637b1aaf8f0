"""The same job every night over a manifest that changes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.process


def test_each_night_asks_only_what_is_new(workspace):
    folder = workspace.folder / "days"
    folder.mkdir()

    def write_file(name, rows):
        pq.write_table(
            pa.Table.from_pylist([{**row, "image": str(workspace.folder / row["image"])} for row in rows]),
            folder / name,
        )

    def run_night():
        before = {row["run"] for row in workspace.read_answers()}
        roots = {"manifest": str(folder), "roots": [str(workspace.folder)]}
        assert workspace.run_job(input=roots, output={"chunk_rows": 3}) == 0
        after = workspace.read_answers()
        assert len({(row["id"], row["question"]) for row in after}) == len(after)
        return sorted(row["id"] for row in after if row["run"] not in before)

    rows = workspace.draw_images(14)
    write_file("monday.parquet", rows[:5])
    assert run_night() == ["r0", "r1", "r2", "r3", "r4"]

    write_file("tuesday.parquet", rows[5:9])  # a new file
    assert run_night() == ["r5", "r6", "r7", "r8"]

    write_file("tuesday.parquet", rows[5:11])  # rows appended to it
    assert run_night() == ["r10", "r9"]

    write_file("monday.parquet", [rows[11], *rows[4:0:-1]])  # another order, one row more and one less
    assert run_night() == ["r11"]

    moved = {**rows[6], "image": "pics/12.png"}  # a picture that moved is a new question
    write_file("tuesday.parquet", [rows[5], moved, *rows[7:11]])
    assert run_night() == ["r6"]

    assert run_night() == []
    assert sorted(workspace.list_answered_ids()) == sorted([*(f"r{n}" for n in range(12)), "r6"])
