"""Scratch folders of killed workers are deleted, and those of running workers are kept."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.fetch import scratch


def test_only_folders_of_killed_workers_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    running = scratch.ScratchFolder()
    script = "import os; from pipeline.fetch import scratch; folder = scratch.ScratchFolder(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    newest = scratch.ScratchFolder()
    assert len(list(tmp_path.iterdir())) == 3, "the folder of the killed worker is too young to be deleted"
    monkeypatch.setattr(scratch, "MIN_ABANDONED_AGE_S", -1.0)
    scratch.delete_abandoned_folders(tmp_path)
    assert {*tmp_path.iterdir()} == {running.path, newest.path}
    running.close()
    newest.close()
    assert list(tmp_path.iterdir()) == []
