"""A folder for one test: pictures, a manifest, a job over them, and the output of its runs."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.job.spec import Job
from pipeline.run import driver
from pipeline.run.shards import Shard
from tests.seaweed import Seaweed

ROOT = Path(__file__).parents[1]


class JobWorkspace:
    def __init__(self, folder: Path):
        self.folder = folder
        self.messages: list[str] = []  # what the last run told its user

    def draw_images(self, count: int, start: int = 0) -> list[dict[str, Any]]:
        """Write small pictures. Returns a manifest row for each, with the ids r0, r1, ..."""
        (self.folder / "pics").mkdir(exist_ok=True)
        for number in range(start, start + count):
            Image.new("RGB", (40, 30), (number * 7 % 256, 90, 160)).save(self.folder / f"pics/{number}.png")
        return [{"id": f"r{n}", "image": f"pics/{n}.png", "hint": "h"} for n in range(start, start + count)]

    def write_broken_images(self, count: int) -> list[dict[str, Any]]:
        """Write files that are no pictures. Returns a manifest row for each, with the ids bad0, bad1, ..."""
        (self.folder / "pics").mkdir(exist_ok=True)
        for number in range(count):
            (self.folder / f"pics/bad{number}.png").write_bytes(b"no picture")
        return [{"id": f"bad{n}", "image": f"pics/bad{n}.png", "hint": "h"} for n in range(count)]

    def write_manifest(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(list(rows)), self.folder / "m.parquet")

    def build_job(self, **sections: Mapping[str, Any]) -> dict[str, Any]:
        """The job as in YAML. Each given section is merged into the default one."""
        defaults: dict[str, dict[str, Any]] = {
            "input": {"manifest": str(self.folder / "m.parquet"), "id": "id", "media": ["image"], "keep": ["hint"]},
            "prompt": {"user": "What is it?"},
            "model": {"weights": "builtin:tiny"},
            "engine": {"kind": "scripted", "default": "seen {id}", "slots": 8},
            "output": {"path": str(self.folder / "out"), "chunk_rows": 4},
            "limits": {"error_rate": 1},
        }
        if sections.get("engine", {}).get("kind", "scripted") != "scripted":
            defaults["engine"] = {}
        names = dict.fromkeys([*defaults, *sections])
        return {"name": "t", **{name: {**defaults.get(name, {}), **sections.get(name, {})} for name in names}}

    def write_job_file(self, name: str = "job.yaml", **sections: Mapping[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.build_job(**sections)))
        return path

    def run_job(
        self,
        *,
        runner: str = "local",
        row_limit: int | None = None,
        allow_other_questions: bool = False,
        retry_kind: str | None = None,
        shard: tuple[int, int] | None = None,
        take_over: bool = False,
        **sections: Any,
    ) -> int:
        job = Job.model_validate(self.build_job(**sections))
        self.messages.clear()
        return driver.run_job(
            job,
            driver.RunOptions(
                row_limit=row_limit,
                runner=runner,
                allow_other_questions=allow_other_questions,
                retry_kind=retry_kind,
                shard=Shard(*shard) if shard else None,
                take_over=take_over,
            ),
            say=self.messages.append,
        )

    def list_parts(self, out: str = "out") -> dict[str, int]:
        """The files with answers, and when each was written."""
        paths = (self.folder / out / "data").glob("fp=*/*.parquet")
        return {path.name: path.stat().st_mtime_ns for path in paths}

    def read_answers(self, out: str = "out") -> list[dict[str, Any]]:
        return read_rows(self.folder / out / "data")

    def read_dead_letters(self, out: str = "out") -> list[dict[str, Any]]:
        return read_rows(self.folder / out / "errors")

    def list_answered_ids(self, out: str = "out") -> list[str]:
        return [row["id"] for row in self.read_answers(out)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("fp=*/*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(rows, key=lambda row: str(row["id"]))


@pytest.fixture
def workspace(tmp_path: Path) -> JobWorkspace:
    return JobWorkspace(tmp_path)


@pytest.fixture(scope="module")
def ray_environment() -> Iterator[dict[str, str]]:
    """Environment variables for a child that runs Ray in a folder of its own. Its processes end with the module."""
    folder = tempfile.mkdtemp(prefix="vl")
    path = f"{ROOT / '.venv/bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of clusters that a test starts itself
    yield {**env, "RAY_TMPDIR": folder, "PATH": path, **token}
    kill_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


def wait_for_url(url: str, *, token: str) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    for _ in range(1200):
        try:
            urllib.request.urlopen(request, timeout=2)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} does not answer")


def kill_processes(folder: str) -> None:
    """Kill the processes whose command line names the folder."""
    killed = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or ()):
            process.kill()
            killed.append(process)
    psutil.wait_procs(killed, timeout=20)


@pytest.fixture(scope="module")
def s3_environment(tmp_path_factory, ray_environment):
    """`ray_environment` with an S3 server that belongs to the module."""
    with Seaweed(tmp_path_factory.mktemp("weed")) as seaweed:
        yield {**ray_environment, **seaweed.environment}
