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
from pipeline.export.media_files import find_extension
from pipeline.export.splits import choose_split
from pipeline.export.table_appender import TableAppender
from pipeline.job.spec import Job
from pipeline.output.medium_names import name_medium
from pipeline.output.store import OutputStore
from pipeline.registry import EXPORTERS, load_registered

BOX = {"bbox_2d": [7, 14, 28, 35], "label": "dog"}
BOXES = {"answer": {"schema": "boxes"}, "engine": {"default": json.dumps({"boxes": [BOX]})}}
CHUNKS_OF_TWO = {**BOXES, "output": {"chunk_rows": 2}}


class IdListExporter:
    """A format of one text file per group and split, with the media beside it and an index at the end."""

    can_partition, can_split, media_choices = False, True, ("none", "copy")

    def __init__(self, task):
        self.task, self.target = task, task.target

    def write_group(self, name, tables):
        ids = {}
        for table in tables:
            rows = table.to_pylist()
            for row in rows:
                ids.setdefault(choose_split(row["id"], self.task.options.splits), []).append(row["id"])
            if self.task.options.media == "copy":
                self.task.media_files.prefetch(rows)
                self.copy_pictures(rows)
        files = {f"{split}{name}.txt": lines for split, lines in ids.items()}
        for file, lines in files.items():
            self.target.overwrite(file, "\n".join(lines).encode())
        return list(files)

    def copy_pictures(self, rows):
        for row in rows:
            if data := self.task.media_files.read_picture(row, 0, self.task.remarks):
                self.target.overwrite(f"{name_medium(row['id'])}.{find_extension(data)}", data)

    def finish(self, files):
        self.target.overwrite("index.json", json.dumps(files).encode())


@pytest.fixture
def toy_format(monkeypatch):
    module = ModuleType("toy_format")
    module.IdListExporter = IdListExporter
    monkeypatch.setitem(sys.modules, "toy_format", module)
    monkeypatch.setitem(EXPORTERS, "id-list", "toy_format:IdListExporter")


FOLDER_FORMATS = [name for name in EXPORTERS if not issubclass(load_registered(EXPORTERS, name, "--to"), TableAppender)]


@pytest.fixture(params=[*FOLDER_FORMATS, "id-list"])
def export(request, workspace, toy_format):
    """Exports the job of the workspace in one format. Returns the messages."""

    def run_export(folder="exported", rows_per_file=1000, where=None, **sections):
        messages = []
        job = Job.model_validate(workspace.build_job(**BOXES | sections))
        target = str(workspace.folder / folder)
        export_job(job, target, request.param, ExportOptions(rows_per_file, where=where), messages.append)
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
    workspace.run_job(**BOXES)
    export()
    export()
    with pytest.raises(OutputError, match=r"holds another export \(rows_per_file: was 1000, is 2\); export to another"):
        export(rows_per_file=2)
    workspace.write_manifest(workspace.draw_images(6))
    workspace.run_job(**BOXES)
    with pytest.raises(OutputError, match=r"holds another export \(parts: was 1, is 2, bytes: was"):
        export()


def test_a_folder_with_other_files_is_refused(workspace, export):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job(**BOXES)
    with pytest.raises(OutputError, match=r"pics holds 0\.png and is no export; export to an empty folder"):
        export("pics")
    with pytest.raises(JobError, match="is the job's own output"):
        export("out")
    assert [path.name for path in (workspace.folder / "pics").iterdir()] == ["0.png"]


def list_files(target):
    return {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_rows_that_do_not_match_are_left_out_and_counted(workspace, export):
    workspace.write_manifest(workspace.draw_images(5))
    workspace.run_job(**CHUNKS_OF_TWO)
    target = workspace.folder / "exported"
    assert export(rows_per_file=2, where="id in ('r0', 'r3')", **CHUNKS_OF_TWO)[-1] == (
        f"{target}: 5 of 5 rows; of these, 2 match --where and are exported"
    )
    assert sorted((note["rows"], note["selected"]) for note in read_notes(target)) == [(1, 0), (2, 1), (2, 1)]
    assert (target / "_SUCCESS").exists()
    with pytest.raises(OutputError, match=r"another export \(where: was id in .'r0', 'r3'.,? is None\)"):
        export(rows_per_file=2, **CHUNKS_OF_TWO)
    for expression in ("id", "count(*) > 1", "sizes > 1", "id in (select content from read_text('m.parquet'))"):
        with pytest.raises(OutputError, match="--where"):
            export("other", where=expression, **CHUNKS_OF_TWO)
    assert not (workspace.folder / "other").exists()


def test_an_export_that_was_killed_has_the_same_bytes_as_any_other(workspace, export, monkeypatch):
    workspace.write_manifest(workspace.draw_images(8))
    workspace.run_job(**CHUNKS_OF_TWO)
    export("whole", rows_per_file=4, **CHUNKS_OF_TWO)

    def interrupt_note(store, name, data):
        if name.startswith("_groups/"):
            raise KeyboardInterrupt
        return create_object(store, name, data)

    create_object = OutputStore.create_object
    with monkeypatch.context() as patch:
        patch.setattr(OutputStore, "create_object", interrupt_note)
        with pytest.raises(KeyboardInterrupt):
            export(rows_per_file=4, **CHUNKS_OF_TWO)
    export(rows_per_file=4, **CHUNKS_OF_TWO)
    assert list_files(workspace.folder / "exported") == list_files(workspace.folder / "whole")


def test_a_format_gets_splits_and_media_and_may_refuse_options(workspace, toy_format, capsys):
    workspace.write_manifest(workspace.draw_images(20))
    workspace.run_job(**BOXES)
    job, target = str(workspace.write_job_file(**BOXES)), workspace.folder / "ids"
    (workspace.folder / "pics/3.png").unlink()
    assert main(["export", job, str(target), "--to", "id-list", "--split", "train=0.75,val=0.25", "--media=copy"]) == 0
    assert "media not copied (not_found): 1, for instance of row r3: " in capsys.readouterr().out
    splits = {name: [*target.glob(f"{name}*.txt")] for name in ("train", "val")}
    ids = {name: [row_id for path in paths for row_id in path.read_text().split()] for name, paths in splits.items()}
    assert sorted(map(len, ids.values())) == [5, 15]
    assert ids["val"] == [f"r{number}" for number in range(20) if f"r{number}" not in ids["train"]]
    pictures = {path.name: path.read_bytes() for path in target.glob("*.png")}
    assert pictures == {f"r{n}.png": (workspace.folder / f"pics/{n}.png").read_bytes() for n in range(20) if n != 3}
    capsys.readouterr()
    assert main(["export", job, str(target), "--to", "id-list", "--split", "train=0.75,val=0.25"]) == 2
    assert "holds another export (media: was copy, is none)" in capsys.readouterr().err
    for options, message in {
        ("--partition-by", "hint"): "--partition-by: the format id-list cannot follow it; table can",
        ("--media", "link"): "--media link: the format id-list knows none, copy",
        ("--split", "train=0.5"): "--split train=0.5: write names and their shares",
    }.items():
        assert main(["export", job, str(workspace.folder / "other"), "--to", "id-list", *options]) == 2
        assert message in capsys.readouterr().err


def test_the_command_line_exports_to_a_format_that_only_the_registry_names(workspace, toy_format, capsys):
    workspace.write_manifest(workspace.draw_images(3))
    workspace.run_job(**BOXES)
    job, target = str(workspace.write_job_file(**BOXES)), workspace.folder / "ids"
    assert main(["export", job, str(target), "--to", "id-list"]) == 0
    [file] = json.loads((target / "index.json").read_text())
    assert (target / file).read_text() == "r0\nr1\nr2"
    assert main(["export", job, str(target)]) == 2
    assert "holds another export (format: was id-list, is table, media: was none" in capsys.readouterr().err
    assert main(["export", job, str(workspace.folder / "table"), "--to", "id-lists"]) == 2
    known = ", ".join(EXPORTERS)
    assert f"--to 'id-lists' is not known; known: {known}. Did you mean 'id-list'?" in capsys.readouterr().err
