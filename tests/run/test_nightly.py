"""The same job, night after night, over a manifest that changes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def test_each_night_asks_what_is_new_and_nothing_else(workspace):
    folder = workspace.folder / "days"
    folder.mkdir()

    def deliver(name, rows):
        pq.write_table(
            pa.Table.from_pylist([{**row, "image": str(workspace.folder / row["image"])} for row in rows]),
            folder / name,
        )

    def night():
        before = {row["run"] for row in workspace.read_answers()}
        roots = {"manifest": str(folder), "roots": [str(workspace.folder)]}
        assert workspace.run_job(input=roots, output={"chunk_rows": 3}) == 0
        after = workspace.read_answers()
        assert len({(row["id"], row["question"]) for row in after}) == len(after)
        return sorted(row["id"] for row in after if row["run"] not in before)

    rows = workspace.draw_images(14)
    deliver("monday.parquet", rows[:5])
    assert night() == ["r0", "r1", "r2", "r3", "r4"]

    deliver("tuesday.parquet", rows[5:9])  # a new file
    assert night() == ["r5", "r6", "r7", "r8"]

    deliver("tuesday.parquet", rows[5:11])  # rows appended to it
    assert night() == ["r10", "r9"]

    deliver("monday.parquet", [rows[11], *rows[4:0:-1]])  # rewritten: another order, one more, one less
    assert night() == ["r11"]

    moved = {**rows[6], "image": "pics/12.png"}  # a picture that moved is a new question
    deliver("tuesday.parquet", [rows[5], moved, *rows[7:11]])
    assert night() == ["r6"]

    assert night() == []
    assert sorted(workspace.list_answered_ids()) == sorted([*(f"r{n}" for n in range(12)), "r6"])
