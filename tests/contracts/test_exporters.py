"""Every registered export format keeps these promises. A toy format shows that the registry is all a new one needs."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError, OutputError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.job.spec import Job
from pipeline.output.store import OutputStore
from pipeline.registry import EXPORTERS

CHUNKS_OF_TWO = {"output": {"chunk_rows": 2}}


class IdListExporter:
    """A format of one text file per group, with an index at the end."""

    def __init__(self, task):
        if task.options.partition_by:
            raise OutputError("--partition-by: lists of ids have no partitions")
        self.target = task.target

    def write_group(self, name, tables):
        ids = [row_id for table in tables for row_id in table["id"].to_pylist()]
        self.target.overwrite(f"{name}.txt", "\n".join(ids).encode())
        return [f"{name}.txt"]

    def finish(self, files):
        self.target.overwrite("index.json", json.dumps(files).encode())


@pytest.fixture
def toy_format(monkeypatch):
    module = ModuleType("toy_format")
    module.IdListExporter = IdListExporter
    monkeypatch.setitem(sys.modules, "toy_format", module)
    monkeypatch.setitem(EXPORTERS, "id-list", "toy_format:IdListExporter")


@pytest.fixture(params=[*EXPORTERS, "id-list"])
def export(request, workspace, toy_format):
    """Exports the job of the workspace in one format. Returns the messages."""

    def run_export(folder="exported", rows_per_file=1000, **sections):
        messages = []
        job = Job.model_validate(workspace.build_job(**sections))
        target = str(workspace.folder / folder)
        export_job(job, target, request.param, ExportOptions(rows_per_file), messages.append)
        return messages

    return run_export


def read_notes(target):
    return [json.loads(path.read_text()) for path in (target / "_groups").glob("*.json")]


def test_an_export_accounts_for_every_row_and_names_its_files(workspace, export):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    workspace.run_job(row_limit=4, **CHUNKS_OF_TWO)
    target = workspace.folder / "exported"
    assert export(rows_per_file=2, **CHUNKS_OF_TWO)[-2:] == [
        f"{target}: 4 of 6 rows",
        "missing: 0 rows that failed (run --retry-errors), 2 not asked yet (run)",
    ]
    notes = read_notes(target)
    assert sorted(note["rows"] for note in notes) == [2, 2]
    assert all((target / file).exists() for note in notes for file in note["files"])
    assert not (target / "_SUCCESS").exists()


def test_an_interrupted_export_continues_with_the_groups_that_are_not_complete(workspace, export, monkeypatch):
    workspace.write_manifest(workspace.draw_images(8))
    workspace.run_job(**CHUNKS_OF_TWO)
    target = workspace.folder / "exported"
    create_object = OutputStore.create_object

    def interrupt_second_note(store, name, data):
        if name.startswith("_groups/") and read_notes(target):
            raise KeyboardInterrupt
        return create_object(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputStore, "create_object", interrupt_second_note)
        with pytest.raises(KeyboardInterrupt):
            export(rows_per_file=4, **CHUNKS_OF_TWO)
    assert not (target / "_SUCCESS").exists()
    [first_note] = read_notes(target)
    written_at = {file: (target / file).stat().st_mtime_ns for file in first_note["files"]}
    export(rows_per_file=4, **CHUNKS_OF_TWO)
    assert {file: (target / file).stat().st_mtime_ns for file in written_at} == written_at
    assert sum(note["rows"] for note in read_notes(target)) == 8
    assert (target / "_SUCCESS").exists()


def test_a_folder_holds_one_export(workspace, export):
    workspace.write_manifest(workspace.draw_images(4))
    workspace.run_job()
    export()
    export()
    with pytest.raises(OutputError, match=r"holds another export \(rows_per_file: was 1000, is 2\); export to another"):
        export(rows_per_file=2)
    workspace.write_manifest(workspace.draw_images(6))
    workspace.run_job()
    with pytest.raises(OutputError, match=r"holds another export \(parts: was 1, is 2, bytes: was"):
        export()


def test_a_folder_with_other_files_is_refused(workspace, export):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job()
    with pytest.raises(OutputError, match=r"pics holds 0\.png and is no export; export to an empty folder"):
        export("pics")
    with pytest.raises(JobError, match="is the job's own output"):
        export("out")
    assert [path.name for path in (workspace.folder / "pics").iterdir()] == ["0.png"]


def test_the_command_line_exports_to_a_format_that_only_the_registry_names(workspace, toy_format, capsys):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job()
    job, target = str(workspace.write_job_file()), workspace.folder / "ids"
    assert main(["export", job, str(target), "--to", "id-list"]) == 0
    [file] = json.loads((target / "index.json").read_text())
    assert (target / file).read_text() == "r0\nr1\nr2"
    assert main(["export", job, str(target)]) == 2
    assert "holds another export (format: was id-list, is table)" in capsys.readouterr().err
    assert main(["export", job, str(workspace.folder / "table"), "--to", "id-lists"]) == 2
    assert "--to 'id-lists' is not known; known: table, id-list. Did you mean 'id-list'?" in capsys.readouterr().err
