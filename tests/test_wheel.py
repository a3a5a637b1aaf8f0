"""A wheel holds all that the commands need: they run without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGED = ("pipeline/", "schemas/", "jobs/", "vlbatch.py", "pyproject.toml", "README.md", "LICENSE")
BUILD = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
PRINT_PLACES = "import vlbatch, pipeline.new_job.gallery as gallery; print(vlbatch.__file__, gallery.JOBS_FOLDER)"
DRAW_SCENES = """
from pathlib import Path
from pipeline.builtin.scene_files import write_scene_files
write_scene_files(Path("scenes"), "detect", 2)
"""


@pytest.fixture
def run_python(tmp_path):
    """Runs Python where the wheel is unpacked, in an empty folder, and returns what it printed."""
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if name.startswith(PACKAGED):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, *BUILD, "--wheel-dir", tmp_path, source], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    ZipFile(wheel).extractall(installed)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.check_output([sys.executable, *arguments], cwd=tmp_path, env=environment, text=True)

    assert run("-c", PRINT_PLACES).count(str(installed)) == 2
    return run


@pytest.mark.slow
@pytest.mark.process
def test_a_wheel_runs_without_the_repository(run_python, tmp_path):
    command = ["-m", "pipeline"]
    run_python("-c", DRAW_SCENES)
    run_python(*command, "init", "detect", "--manifest", "scenes", "--model", "builtin:tiny", "--gpus", "0")
    run_python(*command, "check", "detect.yaml")
    run_python(*command, "run", "detect.yaml", "--local")
    assert "2 rows" in run_python(*command, "status", "out/detect")
    run_python(*command, "report", "out/detect")
    assert (tmp_path / "out/detect/report.html").stat().st_size > 10_000
