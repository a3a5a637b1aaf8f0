"""Downloads of killed workers do not stay on the machine, and those of living ones do."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.fetch import scratch


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    living = scratch.ScratchFolder()
    script = (
        "import os; from pipeline.fetch.scratch import ScratchFolder; held = ScratchFolder(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    newcomer = scratch.ScratchFolder()
    assert len(list(tmp_path.iterdir())) == 3, "too young to be judged"
    monkeypatch.setattr(scratch, "MIN_ABANDONED_AGE_S", -1.0)
    scratch.delete_abandoned_folders(tmp_path)
    assert {*tmp_path.iterdir()} == {living.path, newcomer.path}
    living.close()
    newcomer.close()
    assert list(tmp_path.iterdir()) == []
