"""The columns that a job copies from its manifest to its output."""

from __future__ import annotations

import json
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.manifest.kept_columns import convert_kept_values
from pipeline.manifest.row_reader import RowReader
from pipeline.manifest.sources.jsonl import SAMPLE_BYTES as JSONL_SAMPLE_BYTES
from pipeline.run.preflight import build_run_context


@pytest.fixture
def write_files(workspace):
    """Writes each list of kept values into a manifest file. Returns the section `input` of a job over the files."""

    def write(*hints, ending="parquet"):
        rows = iter(workspace.draw_images(sum(len(values) for values in hints)))
        paths = [str(workspace.folder / f"{number}.{ending}") for number in range(len(hints))]
        for path, values in zip(paths, hints, strict=True):
            file_rows = [{**next(rows), "hint": value} for value in values]
            if ending == "parquet":
                pq.write_table(pa.Table.from_pylist(file_rows), path)
            else:
                (workspace.folder / path).write_text("".join(json.dumps(row) + "\n" for row in file_rows))
        return {"manifest": paths}

    return write


def read_kept(job):
    """The type and the values of the column `hint`, without asking anything."""
    files = list_manifest_files(job)
    schema = build_run_context(job, files).kept_schema
    values = []
    for file in files:
        reader = RowReader(job, file, None)
        for span in reader.source.list_spans(100):
            rows = [row.values for row in reader.read_rows(span)]
            values += [kept["hint"] for kept in convert_kept_values(file, rows, schema)]
    return str(schema.field("hint").type), values


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (([None], ["a"]), ("string", [None, "a"])),
        (([None, None], [7]), ("int64", [None, None, 7])),
        (([1], [2.5]), ("double", [1, 2.5])),
        (([[]], [[1]]), ("list<item: int64>", [[], [1]])),
    ],
)
def test_a_kept_column_has_one_type_in_all_files(hints, expected, ending, workspace, write_files):
    found_type, values = read_kept(Job.model_validate(workspace.build_job(input=write_files(*hints, ending=ending))))
    assert (found_type.replace("element", "item"), values) == expected


def test_a_column_that_is_empty_in_the_first_file_does_not_stop_the_run(workspace, write_files):
    assert workspace.run_job(input=write_files([None], ["a"]), output={"chunk_rows": 1}) == 0
    assert [row["hint"] for row in workspace.read_answers()] == [None, "a"]


def test_a_kept_column_of_two_types_is_refused_before_anything_is_asked(workspace, write_files, capsys):
    input_section = write_files(["a"], [date(2026, 1, 2)])
    message = (
        r"input\.keep: column hint is string in .*/0\.parquet and date32\[day\] in .*/1\.parquet; give it one type"
    )
    with pytest.raises(JobError, match=message):
        workspace.run_job(input=input_section)
    assert not (workspace.folder / "out").exists()
    assert main(["check", str(workspace.write_job_file(input=input_section))]) == 2
    assert "column hint is string in" in capsys.readouterr().err


def test_jsonl_files_that_disagree_give_text(workspace, write_files):
    input_section = write_files([1, None], ["h"], [{"a": [2]}], ending="jsonl")
    found = read_kept(Job.model_validate(workspace.build_job(input=input_section)))
    assert found == ("string", ["1", None, "h", '{"a": [2]}'])


def test_jsonl_values_that_differ_from_the_sample_are_found_before_the_run(workspace, write_files, monkeypatch):
    monkeypatch.setattr("pipeline.manifest.sources.jsonl.SAMPLE_BYTES", 1)
    input_section = write_files([1, "h"], ending="jsonl")
    with pytest.raises(JobError, match=r"0\.jsonl:2: column hint holds \"h\", and int64 before"):
        workspace.run_job(input=input_section)
    assert workspace.list_parts() == {}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["TEXT"], "every output has a column text of its own"),
        (["hint", "Hint"], "names hint twice"),
    ],
)
def test_kept_names_that_differ_only_in_case_from_another_column_are_refused(names, problem, workspace):
    workspace.write_manifest([{**row, "TEXT": "t", "Hint": "H"} for row in workspace.draw_images(1)])
    with pytest.raises(JobError, match=f"input.keep: {problem}"):
        workspace.run_job(input={"keep": names})


@pytest.fixture
def late_misfit(workspace):
    """Two JSONL files. Behind what decides its types, the second has a value that does not fit the first one."""
    rows = workspace.draw_images(3)
    padding = {"id": "p", "image": "pics/0.png", "hint": None, "pad": "x" * (JSONL_SAMPLE_BYTES + 1)}
    (workspace.folder / "1.jsonl").write_text(json.dumps({**rows[0], "hint": 7}) + "\n")
    lines = [padding, {**rows[1], "hint": "seven"}, {**rows[2], "hint": 8}]
    (workspace.folder / "2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return {"manifest": [str(workspace.folder / f"{number}.jsonl") for number in (1, 2)], "keep": ["hint"]}


def test_a_value_that_does_not_fit_costs_its_row_not_the_run(workspace, late_misfit):
    assert workspace.run_job(input=late_misfit) == 3
    assert [(row["id"], row["hint"]) for row in workspace.read_answers()] == [("p", None), ("r0", 7), ("r2", 8)]
    [letter] = workspace.read_dead_letters()
    assert (letter["id"], letter["stage"], letter["kind"], letter["hint"]) == ("r1", "read", "row", None)
    assert "column hint (input.keep) is int64 in the other files of the manifest, not here" in letter["message"]


def test_an_export_refuses_a_misfit_only_where_the_row_was_answered(workspace, late_misfit, capsys):
    job = workspace.write_job_file(input=late_misfit)
    assert main(["run", str(job), "--local"]) == 3
    assert main(["export", str(job), str(workspace.folder / "table")]) == 3
    late = workspace.folder / "2.jsonl"
    late.write_text(late.read_text().replace('"hint": 8', '"hint": "eight"'))
    assert main(["export", str(job), str(workspace.folder / "other")]) == 2
    assert "2.jsonl: column hint (input.keep) is int64" in capsys.readouterr().err
