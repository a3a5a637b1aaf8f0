"""People's corrections replace the model's answers in exports, and rows that people have labelled are not asked."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main

pytestmark = pytest.mark.process

SECTIONS = {
    "answer": {"schema": "caption"},
    "engine": {"default": json.dumps({"caption": "a cat", "tags": ["pet"], "language": "en"})},
    "output": {"chunk_rows": 2},
}


@pytest.fixture
def captions(workspace):
    workspace.write_manifest(workspace.draw_images(6))
    return workspace


def write_truth(captions, *numbers, name="truth.parquet"):
    rows = [{"id": f"r{number}", "caption": "an owl"} for number in numbers]
    pq.write_table(pa.Table.from_pylist(rows), captions.folder / name)
    return str(captions.folder / name)


def run(captions, *options):
    job = str(captions.write_job_file(**SECTIONS))
    return main(["run", job, "--local", *options])


def export(captions, *options, target="exported"):
    job = str(captions.write_job_file(**SECTIONS))
    return main(["export", job, str(captions.folder / target), *options])


def read_rows(captions, target="exported"):
    tables = [pq.read_table(path) for path in sorted((captions.folder / target).glob("*.parquet"))]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def test_corrections_replace_the_fields_that_people_gave(captions, capsys):
    assert run(captions) == 0
    truth = write_truth(captions, 1, 4)
    capsys.readouterr()
    assert export(captions, "--prefer-truth", truth, "--where", "answer.caption = 'an owl' or id = 'r0'") == 0
    assert capsys.readouterr().out.splitlines()[-3:-1] == [
        f"{captions.folder / 'exported'}: 6 of 6 rows; of these, 3 match --where and are exported",
        "rows that people corrected: 2, for instance row r1",
    ]
    rows = read_rows(captions)
    assert {row_id: row["answer"]["caption"] for row_id, row in rows.items()} == {
        **{"r0": "a cat", "r1": "an owl", "r4": "an owl"}
    }
    assert rows["r1"]["answer"]["tags"] == ["pet"]
    assert (rows["r1"]["confidence"], rows["r1"]["flags"], rows["r0"]["flags"]) == (None, ["corrected"], [])
    write_truth(captions, 1)
    assert export(captions, "--prefer-truth", truth, "--where", "answer.caption = 'an owl' or id = 'r0'") == 2
    assert "holds another export (truth: was" in capsys.readouterr().err


def test_rows_that_people_have_labelled_are_not_asked_until_they_are_wanted(captions, capsys):
    truth = write_truth(captions, 1, 2, 3)
    assert run(captions, "--except", truth) == 0
    first_line = capsys.readouterr().err.splitlines()[0]
    assert first_line.endswith("t: 3 rows, 3 more that --except leaves out; 3 to do in 2 chunks")
    assert sorted(captions.list_answered_ids()) == ["r0", "r4", "r5"]
    assert run(captions, "--except", truth) == 0
    assert "3 done before; 0 to do" in capsys.readouterr().err
    assert main(["status", str(captions.folder / "out")]) == 0
    assert "labelled  3 rows more, which the last run did not ask (--except)" in capsys.readouterr().out
    assert export(captions, "--prefer-truth", truth) == 0
    assert f"not asked, because people labelled them: 3 rows of {truth}" in capsys.readouterr().out
    assert sorted(read_rows(captions)) == ["r0", "r4", "r5"]
    more = write_truth(captions, 1, 2, name="fewer.parquet")
    assert run(captions, "--except", more) == 0
    assert sorted(captions.list_answered_ids()) == ["r0", "r3", "r4", "r5"]
    assert run(captions) == 0
    assert sorted(captions.list_answered_ids()) == [f"r{number}" for number in range(6)]
    assert export(captions, target="all") == 0
    assert sorted(read_rows(captions, "all")) == [f"r{number}" for number in range(6)]


def test_rows_that_were_answered_before_people_labelled_them_stay(captions):
    assert run(captions, "--limit", "2") == 0
    assert run(captions, "--except", write_truth(captions, 0, 5)) == 0
    assert sorted(captions.list_answered_ids()) == [f"r{number}" for number in range(5)]
    assert export(captions, "--prefer-truth", str(captions.folder / "truth.parquet")) == 0
    assert read_rows(captions)["r0"]["answer"]["caption"] == "an owl"


def test_a_failed_row_that_people_have_labelled_is_not_asked_again(captions, capsys):
    captions.write_manifest([*captions.draw_images(2), *captions.write_broken_images(2)])
    assert run(captions) == 3
    truth = captions.folder / "truth.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": "bad0", "caption": "an owl"}]), truth)
    capsys.readouterr()
    assert run(captions, "--retry-errors", "--except", str(truth)) == 3
    assert "1 of 1 failed rows are asked again" in capsys.readouterr().err
    parts = captions.folder.glob("out/errors/*/*.g1-*.parquet")
    assert [row["id"] for part in parts for row in pq.read_table(part).to_pylist()] == ["bad1"]


def test_only_tables_say_which_rows_are_not_asked(captions, capsys):
    assert run(captions, "--except", "project.json") == 2
    assert "--except project.json: give a table with a column `id`" in capsys.readouterr().err


def test_rows_are_found_where_a_table_has_their_ids_as_floats(workspace, capsys):
    """As pandas writes whole numbers beside an empty cell."""
    workspace.write_manifest([{**row, "id": number} for number, row in enumerate(workspace.draw_images(3))])
    tables = {"ids": [0.0, float("nan"), 2.0], "others": [7.0, 8.0, 9.0]}
    for name, ids in tables.items():
        pq.write_table(pa.table({"id": ids, "truth": ["seen 0", "", "seen 2"]}), workspace.folder / f"{name}.parquet")
    job, table = str(workspace.write_job_file()), str(workspace.folder / "ids.parquet")
    assert main(["run", job, "--local", "--except", table]) == 0
    assert workspace.list_answered_ids() == ["1"]
    assert main(["run", job, "--local"]) == 0
    capsys.readouterr()
    assert main(["score", str(workspace.folder / "out"), "--truth", table, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    others, elsewhere = str(workspace.folder / "others.parquet"), f"output.path={workspace.folder}/elsewhere"
    assert main(["run", job, "--local", "--except", others, "--set", elsewhere]) == 0
    assert f"careful: --except {others} names none of the 3 rows that are asked" in capsys.readouterr().err
