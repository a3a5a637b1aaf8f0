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
EXTRAPOLATED_ROWS = 10**9


def write_manifest(path: Path, rows: int) -> None:
    """Write a typical manifest: an id and a URI, with pyarrow's row groups."""
    schema = pa.schema([("id", pa.string()), ("image", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 2**20):
            numbers = range(start, min(start + 2**20, rows))
            uris = [f"s3://bucket/scans/{n % 1000:03}/{n:010}.jpg" for n in numbers]
            writer.write_table(pa.table([[f"scan-{n:010}" for n in numbers], uris], schema=schema))


def plan_once(place: Path, *, is_done: bool) -> dict[str, float]:
    """Plan once in this process. `is_done` commits every chunk first."""
    job = job_loader.parse_job(JOB.replace("PLACE", str(place)))
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    store = OutputStore(context.job.output.path)
    folder = Path(store.path) / f"data/fp={context.fingerprint}"
    if is_done:
        folder.mkdir(parents=True, exist_ok=True)
        for chunk, _ in resume.split_in_process(job, manifest_files, context.schema_prompt):
            (folder / f"{chunk.name}.parquet").touch()
    start = time.perf_counter()
    plan = resume.build_resume_plan(context, manifest_files, Dataset(store, context.fingerprint))
    seconds = time.perf_counter() - start
    assert bool(plan.rows_left) != is_done or not plan.rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "MiB": peak, "chunks": len(plan.chunks)}


def plan_in_process(place: Path, *, is_done: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(place), *(["--done"] if is_done else [])]
    stdout = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--done", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(plan_once(options.one, is_done=options.done)))
        return
    sizes = [10**4, 10**5] if options.quick else options.rows
    lines, figures = [], {}
    for rows in [1, *sizes]:
        with tempfile.TemporaryDirectory() as folder:
            write_manifest(Path(folder) / "manifest.parquet", rows)
            sides = {name: plan_in_process(Path(folder), is_done=name == "no-op") for name in ("first", "no-op")}
        for name, side in sides.items():
            lines.append([f"{rows:,}", name, side["seconds"], side["MiB"], f"{side['chunks']:,.0f}"])
            figures |= {f"{name}_{rows}_s": side["seconds"], f"{name}_{rows}_MiB": side["MiB"]}
    print(harness.format_table(["rows", "run", "seconds", "peak MiB", "chunks"], lines))
    near, far = sizes[-2:]
    for name in () if options.quick else ("first", "no-op"):  # short runs are too noisy to extrapolate
        for unit in ("s", "MiB"):
            low, high = (figures[f"{name}_{rows}_{unit}"] for rows in (near, far))
            slope = (high - low) / (far - near)
            extrapolated = high + slope * (EXTRAPOLATED_ROWS - far)
            figures[f"{name}_{EXTRAPOLATED_ROWS}_{unit}"] = extrapolated
            print(f"{name}: {slope * 1e6:,.2f} {unit} a million rows, {extrapolated:,.0f} {unit} at 10^9")
    harness.print_report(
        "resume",
        ratios={"no-op/first": figures[f"no-op_{far}_s"] / figures[f"first_{far}_s"]},
        figures=figures,
        where=harness.describe_machine("pyarrow", "numpy"),
    )


if __name__ == "__main__":
    main()
