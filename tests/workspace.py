"""A desk for runs: pictures, a manifest, a job over them, and what came of it."""

from __future__ import annotations

import os
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
from tests.seaweed import Seaweed

ROOT = Path(__file__).parents[1]


class Desk:
    """A folder with pictures, manifests and outputs of one test."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.said: list[str] = []

    def draw(self, count: int, start: int = 0) -> list[dict[str, Any]]:
        """`count` small pictures, and a row for each: id r0, r1, ..."""
        (self.folder / "pics").mkdir(exist_ok=True)
        for number in range(start, start + count):
            Image.new("RGB", (40, 30), (number * 7 % 256, 90, 160)).save(self.folder / f"pics/{number}.png")
        return [{"id": f"r{n}", "image": f"pics/{n}.png", "hint": "h"} for n in range(start, start + count)]

    def spoil(self, count: int) -> list[dict[str, Any]]:
        """Rows with something that is no picture: id bad0, bad1, ..."""
        (self.folder / "pics").mkdir(exist_ok=True)
        for number in range(count):
            (self.folder / f"pics/bad{number}.png").write_bytes(b"no picture")
        return [{"id": f"bad{n}", "image": f"pics/bad{n}.png", "hint": "h"} for n in range(count)]

    def manifest(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(list(rows)), self.folder / "m.parquet")

    def described(self, **sections: Mapping[str, Any]) -> dict[str, Any]:
        """The job as YAML has it; each section given is laid over the usual one."""
        usual: dict[str, dict[str, Any]] = {
            "input": {"manifest": str(self.folder / "m.parquet"), "id": "id", "media": ["image"], "keep": ["hint"]},
            "prompt": {"user": "What is it?"},
            "model": {"weights": "builtin:tiny"},
            "engine": {"kind": "scripted", "default": "seen {id}", "slots": 8},
            "output": {"path": str(self.folder / "out"), "chunk_rows": 4},
            "limits": {"error_rate": 1},
        }
        if sections.get("engine", {}).get("kind", "scripted") != "scripted":
            usual["engine"] = {}
        names = dict.fromkeys([*usual, *sections])
        return {"name": "t", **{name: {**usual.get(name, {}), **sections.get(name, {})} for name in names}}

    def yaml(self, name: str = "job.yaml", **sections: Mapping[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.described(**sections)))
        return path

    def run(
        self,
        *,
        here: bool = True,
        limit: int | None = None,
        add: bool = False,
        retry: str | None = None,
        **sections: Any,
    ) -> int:
        job = Job.model_validate(self.described(**sections))
        self.said.clear()
        return driver.run_job(
            job,
            driver.RunOptions(row_limit=limit, in_process=here, allow_other_questions=add, retry_kind=retry),
            say=self.said.append,
        )

    def parts(self, out: str = "out") -> dict[str, int]:
        """The objects with answers, and when each was written."""
        found = (self.folder / out / "data").glob("fp=*/*.parquet")
        return {path.name: path.stat().st_mtime_ns for path in found}

    def data(self, out: str = "out") -> list[dict[str, Any]]:
        return read(self.folder / out / "data")

    def errors(self, out: str = "out") -> list[dict[str, Any]]:
        return read(self.folder / out / "errors")

    def ids(self, out: str = "out") -> list[str]:
        return [row["id"] for row in self.data(out)]


def read(folder: Path) -> list[dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("fp=*/*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(rows, key=lambda row: str(row["id"]))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def surroundings() -> Iterator[dict[str, str]]:
    """The environment of a child that runs Ray: a short folder of its own, whose processes end with the module."""
    folder = tempfile.mkdtemp(prefix="vl")
    path = f"{ROOT / '.venv/bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    yield {**env, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "PATH": path}
    end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} does not answer")


def end(folder: str) -> None:
    """Kill the processes whose command line names the folder, each by its pid."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or ()):
            process.kill()
            found.append(process)
    psutil.wait_procs(found, timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory, surroundings):
    """The environment in which s3:// is a server of the module's own."""
    with Seaweed(tmp_path_factory.mktemp("weed")) as seaweed:
        yield {**surroundings, **seaweed.environment}
