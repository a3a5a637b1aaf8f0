"""A long run through Ray: rows per second, CPU for a slice, and the memory of every process over time.

    PYTHONPATH=. python tests/bench/long_run.py [--rows 1000000] [--slice 16] [--slices 1] [--quick]

Text rows and a scripted engine without delay leave only the work around a model. The run is the whole of it: lease,
plan, tasks, crash ledger, commits to a local disk, summaries and report. A chunk is one slice, or `--slices` of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import ray_session
from pipeline.job import job_loader
from pipeline.run.driver import RunOptions, run_job
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, messages: chat}
model: {weights: "builtin:tiny"}
engine: {kind: scripted, slots: 64, default: "{id}"}
workers: {prepare: {max: 1}, generate: {min: 1, max: 1}}
output: {path: PLACE/out, chunk_rows: CHUNK, slice_rows: SLICE}
"""
ACTORS = {"ledger": "CrashLedger", "prepare": "PrepareWorker", "generate": "GenerateWorker"}
SAMPLE_S = 2.0
MARKS = 5  # of a run, at which its memory is shown


def write_manifest(path: Path, rows: int) -> None:
    schema = pa.schema([("id", pa.string()), ("chat", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 2**17):
            names = [f"row {number}" for number in range(start, min(start + 2**17, rows))]
            chats = [json.dumps([{"role": "user", "content": name}]) for name in names]
            writer.write_table(pa.table([names, chats], schema=schema))


class ProcessWatch:
    """Reads the CPU seconds and the memory of the driver and of its actors now and then."""

    def __init__(self) -> None:
        self.driver = psutil.Process()
        self.samples: list[tuple[float, dict[str, float], dict[str, float]]] = []  # time, CPU seconds, MiB

    def read(self) -> None:
        cpu, mib = Counter[str](), Counter[str]()
        for process in [self.driver, *self.driver.children(recursive=True)]:
            try:
                name = self.name_process(process)
                cpu[name] += sum(process.cpu_times()[:2])
                mib[name] += process.memory_full_info().uss / 2**20  # without the shared memory of the object store
            except psutil.NoSuchProcess:
                continue
        self.samples.append((time.monotonic(), cpu, mib))
        if len(self.samples) % 30 == 1:
            figures = ", ".join(f"{name} {mib[name]:.0f} MiB {cpu[name]:.0f} s" for name in sorted(mib))
            print(f"  {figures}", file=sys.stderr, flush=True)

    def name_process(self, process: psutil.Process) -> str:
        if process == self.driver:
            return "driver"
        command = " ".join(process.cmdline())
        return next((name for name, actor in ACTORS.items() if f"ray::{actor}" in command), "Ray's processes")

    @contextmanager
    def follow(self) -> Iterator[None]:
        stopped = Event()

        def look() -> None:
            while not stopped.wait(SAMPLE_S):
                self.read()

        thread = Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def measure(folder: Path, rows: int, slice_rows: int, slices: int) -> tuple[list[list[object]], dict[str, float]]:
    write_manifest(folder / "manifest.parquet", rows)
    text = JOB.replace("PLACE", str(folder)).replace("CHUNK", str(slices * slice_rows))
    job = job_loader.parse_job(text.replace("SLICE", str(slice_rows)))
    watch, started = ProcessWatch(), time.monotonic()
    with watch.follow():
        assert run_job(job, RunOptions(), say=lambda line: print(line, flush=True)) == 0
    seconds = time.monotonic() - started
    working = [sample for sample in watch.samples if "generate" in sample[2] and "prepare" in sample[2]]
    marks = [working[round(number * (len(working) - 1) / (MARKS - 1))] for number in range(MARKS)]
    lines = [
        [f"{marks[0][0] - started:.0f} to {marks[-1][0] - started:.0f} s", name]
        + [mib.get(name, 0.0) for _, _, mib in marks]
        + [1000 * (marks[-1][1][name] - marks[0][1].get(name, 0.0)) * slice_rows / rows]
        for name in ("driver", *ACTORS, "Ray's processes")
    ]
    figures = {"rows_s": rows / seconds, "seconds": seconds}
    figures |= {f"{name}_ms_slice": cost for _, name, *_, cost in lines}  # type: ignore[misc]
    figures |= {f"{name}_growth_mib": line[-2] - line[2] for line in lines for name in [line[1]]}  # type: ignore[operator]
    return lines, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--slice", type=int, default=16, help="rows of a slice")
    parser.add_argument("--slices", type=int, default=1, help="of a chunk")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows = 50_000 if options.quick else options.rows
    with ray_session.connect_to_ray(), tempfile.TemporaryDirectory() as folder:
        lines, figures = measure(Path(folder), rows, options.slice, options.slices)
    header = ["from, to", "process", *(f"MiB at {number}/{MARKS - 1}" for number in range(MARKS)), "CPU ms a slice"]
    print(harness.format_table(header, lines))
    harness.print_report("long_run", ratios={}, figures=figures, where=harness.describe_machine("ray"))


if __name__ == "__main__":
    main()
