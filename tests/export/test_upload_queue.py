"""Many small files are on the disk before anything says that they are complete, and are not synced one by one."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.errors import OutputError
from pipeline.export.upload_queue import UploadQueue
from pipeline.output import local_files
from pipeline.output.store import OutputStore


@pytest.fixture
def target(tmp_path):
    (tmp_path / "export").mkdir()
    return OutputStore(str(tmp_path / "export"), max_attempts=1)


def test_files_are_synced_together_when_all_are_written(target, tmp_path, monkeypatch):
    sync_files, synced = local_files.sync_files, []

    def record_files(folder):
        sync_files(folder)
        synced.append(sorted(path.name for path in (tmp_path / "export/labels").iterdir()))

    monkeypatch.setattr(local_files, "sync_files", record_files)
    monkeypatch.setattr(os, "fsync", pytest.fail)
    with UploadQueue(target) as uploads:
        for number in range(100):
            uploads.add(f"labels/{number:02}.txt", b"0 0.5 0.5 1 1\n")
        assert synced == []
    assert synced == [[f"{number:02}.txt" for number in range(100)]]
    assert (tmp_path / "export/labels/99.txt").read_bytes() == b"0 0.5 0.5 1 1\n"


def test_a_disk_that_fails_to_sync_stops_the_export(target, monkeypatch):
    def fail(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO), folder)

    monkeypatch.setattr(local_files, "sync_files", fail)
    with pytest.raises(OutputError, match="Input/output error"), UploadQueue(target) as uploads:
        uploads.add("a.txt", b"a")
