"""The driver's seconds and memory for planning, by number of rows: for a first run, and for one that finds all done.

Each size runs in a process of its own, whose peak memory is read at the end; the memory for an empty manifest is
subtracted. The slope between the two largest sizes is extrapolated to 10^9 rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.job import job_loader
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: image}
prompt: {user: "What is it?"}
model: {weights: "builtin:tiny"}
output: {path: PLACE/out, chunk_rows: 256}
"""
FAR = 10**9


def draw(path: Path, rows: int) -> None:
    """Write a typical manifest: an id and a URI, with pyarrow's row groups."""
    schema = pa.schema([("id", pa.string()), ("image", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 2**20):
            numbers = range(start, min(start + 2**20, rows))
            uris = [f"s3://bucket/scans/{n % 1000:03}/{n:010}.jpg" for n in numbers]
            writer.write_table(pa.table([[f"scan-{n:010}" for n in numbers], uris], schema=schema))


def one(place: Path, *, done: bool) -> dict[str, float]:
    """Plan once in this process. `done` commits every chunk first."""
    job = job_loader.parse_job(JOB.replace("PLACE", str(place)))
    found = list_manifest_files(job)
    work = preflight.build_run_context(job, found)
    store = OutputStore(work.job.output.path)
    folder = Path(store.path) / f"data/fp={work.fingerprint}"
    if done:
        folder.mkdir(parents=True, exist_ok=True)
        for chunk, _ in resume.split_in_process(job, found, work.schema_prompt):
            (folder / f"{chunk.name}.parquet").touch()
    start = time.perf_counter()
    plan = resume.build_resume_plan(work, found, Dataset(store, work.fingerprint))
    taken = time.perf_counter() - start
    assert bool(plan.rows_left) != done or not plan.rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": taken, "MiB": peak, "chunks": len(plan.chunks)}


def apart(place: Path, *, done: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(place), *(["--done"] if done else [])]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(out.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--done", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, done=options.done)))
        return
    sizes = [10**4, 10**5] if options.quick else options.rows
    lines, figures = [], {}
    for rows in [1, *sizes]:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder) / "manifest.parquet", rows)
            sides = {name: apart(Path(folder), done=name == "no-op") for name in ("first", "no-op")}
        for name, side in sides.items():
            lines.append([f"{rows:,}", name, side["seconds"], side["MiB"], f"{side['chunks']:,.0f}"])
            figures |= {f"{name}_{rows}_s": side["seconds"], f"{name}_{rows}_MiB": side["MiB"]}
    print(harness.table(["rows", "run", "seconds", "peak MiB", "chunks"], lines))
    near, far = sizes[-2:]
    for name in () if options.quick else ("first", "no-op"):  # short runs are too noisy to extrapolate
        for unit in ("s", "MiB"):
            low, high = (figures[f"{name}_{rows}_{unit}"] for rows in (near, far))
            at = high + (high - low) / (far - near) * (FAR - far)
            figures[f"{name}_{FAR}_{unit}"] = at
            print(f"{name}: {(high - low) / (far - near) * 1e6:,.2f} {unit} a million rows, {at:,.0f} {unit} at 10^9")
    harness.report(
        "resume",
        ratios={"no-op/first": figures[f"no-op_{far}_s"] / figures[f"first_{far}_s"]},
        figures=figures,
        where=harness.machine("pyarrow", "numpy"),
    )


if __name__ == "__main__":
    main()
