"""An export has the kept columns of today's manifest, and a row for each row of the manifest."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.job.spec import Job


class TextJob:
    """A job without media, which starts at once: the answer to a question is `seen` and the row's id."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.sections = {"input": {"messages": "messages", "media": [], "keep": ["hint"]}, "prompt": {"user": None}}

    def write_manifest(self, *rows, name="m.parquet"):
        """Each row is an id, a question, and the kept values."""
        records = [
            {"id": row_id, "messages": json.dumps([{"role": "user", "content": question}]), **kept}
            for row_id, question, kept in rows
        ]
        pq.write_table(pa.Table.from_pylist(records), self.workspace.folder / name)

    def run(self, **input_keys):
        return self.workspace.run_job(**{**self.sections, "input": {**self.sections["input"], **input_keys}})

    def export(self, target="table", rows_per_file=1000, **input_keys):
        """The exported rows, in order, and what the export said last."""
        sections = {**self.sections, "input": {**self.sections["input"], **input_keys}}
        said = []
        folder = self.workspace.folder / target
        job = Job.model_validate(self.workspace.build_job(**sections))
        export_job(job, str(folder), "table", ExportOptions(rows_per_file), said.append)
        names = json.loads((folder / "_export.json").read_text())["columns"].keys()
        kept = [name for name in names if name in ("hint", "day")]
        rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        return [(row["id"], row["text"], *(row[name] for name in kept)) for row in rows], said[-1]


@pytest.fixture
def text_job(workspace):
    return TextJob(workspace)


def test_values_that_changed_and_columns_that_came_later_are_todays(text_job):
    rows = [(f"r{number}", f"{number}?", {"hint": "old", "day": number}) for number in range(6)]
    text_job.write_manifest(*rows)
    assert text_job.run() == 0
    text_job.write_manifest(*((row_id, question, {**kept, "hint": "new"}) for row_id, question, kept in rows))
    found, said = text_job.export(keep=["hint", "day"])
    assert found == [(f"r{number}", f"seen r{number}", "new", number) for number in range(6)]
    assert said.endswith("table: 6 of 6 rows")


def test_rows_that_ask_the_same_are_asked_once_and_exported_with_their_own_values(text_job):
    same = [("a", "q?", {"hint": hint}) for hint in ("one", "two", "one", "three")]
    others = [(f"r{number}", f"{number}?", {"hint": "h"}) for number in range(5)]
    text_job.write_manifest(same[0], same[1], *others, same[2], same[3])
    assert text_job.run() == 0
    assert "6 rows, 3 more that ask the same and share an answer" in text_job.workspace.messages[0]
    assert len(text_job.workspace.read_answers()) == 6
    found, said = text_job.export()
    assert sorted(hint for row_id, _, hint in found if row_id == "a") == ["one", "three", "two"]
    assert len(found) == 8
    assert said.endswith("table: 6 of 6 rows, and 2 that ask the same as one of them")


def test_rows_without_an_id_are_exported_with_their_own_values(text_job):
    text_job.write_manifest(*(("-", "q?", {"hint": hint}) for hint in ("one", "two", "one")))
    assert text_job.run(id=None) == 0
    found, _ = text_job.export(id=None)
    assert [hint for *_, hint in found] == ["one", "two"]
    assert len(text_job.workspace.read_answers()) == 1


def test_a_manifest_in_another_order_and_other_files_gives_its_own_values(text_job):
    rows = [(f"r{number}", f"{number}?", {"hint": "old"}) for number in range(11)]
    text_job.write_manifest(*rows)
    assert text_job.run() == 0
    moved = [(row_id, question, {"hint": f"new {row_id}"}) for row_id, question, _ in rows[::-1] if row_id != "r3"]
    repeats = [("r5", "5?", {"hint": "again"}), ("late", "late?", {"hint": "new late"})]
    text_job.write_manifest(*moved[:4], *repeats)
    text_job.write_manifest(*moved[4:], name="second.parquet")
    files = [str(text_job.workspace.folder / name) for name in ("m.parquet", "second.parquet")]
    expected = {(f"r{number}", f"seen r{number}", f"new r{number}") for number in range(11) if number != 3}
    expected |= {("r5", "seen r5", "again")}
    found, _ = text_job.export(manifest=files)
    assert sorted(found) == sorted(expected)  # before the new row is answered
    assert text_job.run(manifest=files) == 0
    found, said = text_job.export("later", rows_per_file=3, manifest=files)
    assert sorted(found) == sorted(expected | {("late", "seen late", "new late")})
    assert said.endswith("later: 11 of 11 rows, and 1 that ask the same as one of them")


def test_a_row_that_an_orphan_part_answers_again_is_exported_once(text_job):
    text_job.write_manifest(*((f"r{number}", f"{number}?", {"hint": "h"}) for number in range(4)))
    assert text_job.run() == 0
    [part] = text_job.workspace.folder.glob("out/data/*/*.parquet")
    shutil.copy(part, part.with_name("0" * 24 + ".parquet"))
    found, said = text_job.export()
    assert [row_id for row_id, *_ in found] == ["r0", "r1", "r2", "r3"]
    assert said.endswith("table: 4 of 4 rows")


def test_an_export_does_not_go_on_with_other_kept_values(text_job):
    rows = [(f"r{number}", f"{number}?", {"hint": "old"}) for number in range(8)]
    text_job.write_manifest(*rows)
    assert text_job.run() == 0
    before, _ = text_job.export(rows_per_file=4)
    assert text_job.export(rows_per_file=4)[0] == before
    text_job.write_manifest(*rows[:-1], ("r7", "7?", {"hint": "new"}))
    with pytest.raises(OutputError, match="holds another export \\(other answers or kept values\\)"):
        text_job.export(rows_per_file=4)
