"""Two runs of one job cut its manifest into different chunks, and the second one takes over: no row counts twice."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter

import pytest

from pipeline.errors import StoppedError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.inspect.status import format_status, read_status
from pipeline.job.spec import Job
from pipeline.run import driver, lease
from tests.chaos.takeover import count_ids

pytestmark = pytest.mark.process
FIRST_CHUNKS, SECOND_CHUNKS = {"output": {"chunk_rows": 4}}, {"output": {"chunk_rows": 3}}
IDS = [f"r{number}" for number in range(6)]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(lease, "COMMIT_GRACE_S", 0.0)


def take_over(workspace):
    job = Job.model_validate(workspace.build_job(**SECOND_CHUNKS))
    return driver.run_job(job, driver.RunOptions(runner="local", take_over=True), say=lambda line: None)


def export_ids(workspace, name, **sections):
    """The exit code, and how often the export has each id."""
    messages = []
    job = Job.model_validate(workspace.build_job(**sections))
    code = export_job(job, str(workspace.folder / name), "table", ExportOptions(), messages.append)
    return code, count_ids(workspace.folder / name)


def interrupt_first_commit(monkeypatch, name, action):
    """Call `action` once, in the middle of the first commit: when `os.fsync` or `os.link` is called for its file."""
    function, interrupted = getattr(os, name), []

    def interrupt(*arguments):
        target = arguments[-1] if name == "link" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if "/data/" in target and not interrupted:
            interrupted.append(target)
            action()
        return function(*arguments)

    monkeypatch.setattr(f"pipeline.output.local_files.os.{name}", interrupt)


@pytest.mark.usefixtures("short_waits")
def test_a_commit_that_is_retried_gives_up_once_another_run_has_taken_over(workspace, monkeypatch):
    def take_over_while_the_disk_fails():
        assert take_over(workspace) == 0
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    workspace.write_manifest(workspace.draw_images(6))
    interrupt_first_commit(monkeypatch, "fsync", take_over_while_the_disk_fails)
    with pytest.raises(StoppedError, match="taken over"):
        workspace.run_job(**FIRST_CHUNKS)
    assert workspace.list_answered_ids() == IDS
    assert export_ids(workspace, "table") == (0, Counter(IDS))


def test_repeated_rows_are_reported_exported_once_and_deleted_by_the_next_run(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(6))
    interrupt_first_commit(monkeypatch, "link", lambda: take_over(workspace))
    with pytest.raises(StoppedError, match="taken over"):
        workspace.run_job(**FIRST_CHUNKS)
    assert workspace.list_answered_ids() == sorted([*IDS, "r0", "r1", "r2", "r3"])
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.repeated, status.left) == (6, 4, 0)
    assert "twice     4 rows, because a run that was taken over committed late" in "\n".join(format_status(status))
    shutil.copytree(workspace.folder / "out", workspace.folder / "saved")
    for chunk_rows in (3, 4, 5):  # in turn the chunks of the second run, those of the first one, and others
        output = {"output": {"chunk_rows": chunk_rows}}
        shutil.rmtree(workspace.folder / "out")
        shutil.copytree(workspace.folder / "saved", workspace.folder / "out")
        assert export_ids(workspace, f"before-{chunk_rows}", **output) == (0, Counter(IDS))
        assert workspace.run_job(**output) == 0
        assert workspace.messages[0].startswith("deleted 1 part of data/: a run that was taken over committed late")
        assert workspace.list_answered_ids() == IDS
        assert read_status(str(workspace.folder / "out")).repeated == 0
        assert export_ids(workspace, f"after-{chunk_rows}", **output) == (0, Counter(IDS))


def test_a_row_that_failed_but_is_answered_in_a_late_part_counts_as_answered(workspace, monkeypatch):
    def break_picture_and_take_over():
        (workspace.folder / "pics/1.png").write_bytes(b"no picture")
        assert take_over(workspace) == 3

    workspace.write_manifest(workspace.draw_images(6))
    interrupt_first_commit(monkeypatch, "link", break_picture_and_take_over)
    with pytest.raises(StoppedError, match="taken over"):
        workspace.run_job(**FIRST_CHUNKS)
    assert export_ids(workspace, "table", **SECOND_CHUNKS) == (0, Counter(IDS))
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.repeated, status.wrong) == (6, 3, {})
    assert workspace.run_job(**SECOND_CHUNKS) == 0
    assert export_ids(workspace, "again", **SECOND_CHUNKS) == (0, Counter(IDS))
