"""From a thousand to a million rows: the driver's cost for planning and driving them, and the load of the object store.

    python tests/bench/scale.py [--quick] [--driven N] [--planned N]
    python tests/bench/scale.py --simulate    # a million to a billion rows on 10 to 1,000 replicas, without Ray
    python tests/bench/scale.py --compare     # the simulation with real runs of 1, 4 and 16 replicas

Text rows and a scripted engine without delay leave only the work around a model. A million rows are planned, and
`--driven` rows also run through Ray. Then comes a long tail: one picture in a hundred has 50 times the pixels of the
others; the same run without them is the other side.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cluster import ray_session
from pipeline.cluster.ray_runner import RayRunner
from pipeline.context import RunContext
from pipeline.inspect.plan import simulation
from pipeline.job import job_loader
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset, write_run_document
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume
from pipeline.run.chunk_size import count_slices
from pipeline.run.signals import StopSignals
from tests.bench import harness, replicas

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, MEDIA}
PROMPT
model: {weights: "builtin:tiny"}
engine: {kind: scripted, slots: 64, default: "{id}", delay_ms: DELAY}
output: {path: PLACE/out, chunk_rows: CHUNK}
"""
ROUNDS = 4  # of the rows that a replica answers at once, when all replicas have started
CHUNK, LIGHT, HEAVY = 256, (320, 240), (2240, 1680)  # chunk_rows of the text rows; the sizes of two pictures


def plan_job(
    folder: Path, columns: dict[str, list[str]], **replacements: str
) -> tuple[RunContext, resume.ResumePlan, float]:
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    text = JOB.replace("PLACE", str(folder))
    for name, value in {
        "MEDIA": "messages: chat",
        "PROMPT": "",
        "DELAY": "0",
        "CHUNK": str(CHUNK),
        **replacements,
    }.items():
        text = text.replace(name, value)
    job = job_loader.parse_job(text)
    context, started = preflight.build_run_context(job, list_manifest_files(job)), time.monotonic()
    return (
        context,
        resume.build_resume_plan(
            context, list_manifest_files(job), Dataset(OutputStore(job.output.path), context.fingerprint)
        ),
        time.monotonic() - started,
    )


@contextmanager
def watch_store_peak() -> Iterator[list[float]]:
    """Track the peak MiB of the object store."""
    peak, stopped = [0.0], Event()

    def look() -> None:
        while not stopped.wait(0.25):
            peak[0] = max(peak[0], harness.get_store_statistics().object_store_bytes_used / 2**20)

    thread = Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def run_plan(context: RunContext, plan: resume.ResumePlan) -> dict[str, float]:
    """Rows per second from the first chunk to the last, and their cost for the driver."""
    driver, marks = psutil.Process(), []
    write_run_document(OutputStore(context.job.output.path), context.run_id, "job", "{}")  # workers look for it
    with watch_store_peak() as peak:
        for receipt in RayRunner().run_chunks(context, plan.remaining_chunks, StopSignals(print)):
            assert receipt.failed == 0
            marks.append((time.monotonic(), sum(driver.cpu_times()[:2]), receipt.answered))
    (first, cpu, rows), (last, cpu_end, _) = marks[0], marks[-1]
    seconds, chunks = last - first, max(1, len(marks) - 1)
    return {
        "rows_s": (sum(answered for *_, answered in marks) - rows) / seconds if seconds else 0.0,
        "driver_ms_chunk": 1000 * (cpu_end - cpu) / chunks,
        "driver_mib": driver.memory_info().rss / 2**20,
        "store_mib": peak[0],
    }


def measure_growth(
    folder: Path, max_run_rows: int, max_planned_rows: int
) -> tuple[list[list[object]], dict[str, float]]:
    lines: list[list[object]] = []
    figures: dict[str, float] = {}
    count = 1000
    while count <= max_planned_rows:
        names = [f"row {number}" for number in range(count)]
        chats = [json.dumps([{"role": "user", "content": name}]) for name in names]
        context, plan, seconds = plan_job(folder / str(count), {"id": names, "chat": chats})
        run_figures = run_plan(context, plan) if count <= max_run_rows else {}
        mib = psutil.Process().memory_info().rss / 2**20
        costs = [run_figures.get(name, "-") for name in ("rows_s", "driver_ms_chunk", "store_mib")]
        lines.append([f"{count:,}", len(plan.remaining_chunks), seconds, run_figures.get("driver_mib", mib), *costs])
        figures |= {f"plan_s, {count}": seconds, f"driver_mib, {count}": mib}
        figures |= {f"{name}, {count}": value for name, value in run_figures.items()}
        print(f"  {count:,} rows: planned in {seconds:.1f} s, {run_figures}", file=sys.stderr)
        count *= 10
    return lines, figures


def measure_tail(folder: Path, rows: int) -> dict[str, float]:
    """Rows per second without and with one heavy picture in a hundred."""
    noise = np.random.default_rng(1).integers(0, 256, (42, 56, 3), dtype=np.uint8)
    rates = {}
    for name, heavy in (("even", LIGHT), ("tail", HEAVY)):
        job_folder, file_names = folder / name, [f"{name}-{number:05}.jpg" for number in range(rows)]
        for number, file_name in enumerate(file_names):
            picture = Image.fromarray(noise).resize(heavy if number % 100 == 50 else LIGHT)
            picture.save(folder / file_name, quality=92)
        columns = {"id": file_names, "media": [str(folder / file_name) for file_name in file_names], "text": file_names}
        replacements = {
            "MEDIA": f'media: media, roots: ["{folder}"]',
            "PROMPT": 'prompt: {user: "{text}"}',
            "DELAY": "1000",
            "CHUNK": "32",
        }
        rates[name] = run_plan(*plan_job(job_folder, columns, **replacements)[:2])["rows_s"]
    return rates


def print_simulation(costs: simulation.DriverCosts) -> None:
    """Pictures in slices of 89, on GPUs that answer 30 rows a second, at 4 USD an hour, with one driver or enough."""
    lines: list[list[object]] = []
    for rows in (10**6, 10**7, 10**8, 10**9):
        for count in (10, 100, 1000):
            enough = -(-count // simulation.count_fed_replicas(89, 30.0, costs=costs))
            for drivers in dict.fromkeys((1, enough)):
                slices = count_slices(rows, 89)
                load = simulation.Workload(rows, slices * 89, count, 30.0, drivers, load_s=60.0)
                load = replace(load, slice_rows=89) if slices > 1 else load
                run = simulation.simulate_run(load, costs)
                dollars = 4 * count * run.seconds / 3600 + run.requests.cost
                cells = [
                    f"{rows:,}",
                    f"{count:,}",
                    drivers,
                    f"{run.planning_s / 3600:.2f}",
                    f"{run.seconds / 3600:.2f}",
                ]
                shares = [f"{share:.0%}" for share in (run.busy_share, run.driver_cpu_share)]
                lines.append(
                    [
                        *cells,
                        *shares,
                        f"{run.driver_bytes / 2**20:,.0f}",
                        f"{run.requests.puts + run.requests.gets:,.0f}",
                        f"{dollars:,.0f}",
                    ]
                )
    head = [
        "rows",
        "replicas",
        "drivers",
        "planning h",
        "hours",
        "of GPU time",
        "driver CPU",
        "driver MiB",
        "requests",
        "USD",
    ]
    print(harness.format_table(head, lines))


def compare_with_runs(folder: Path, delay_s: float) -> None:
    """Both from the moment at which all replicas have started to the end."""
    ledger_s = simulation.DEFAULT_COSTS.ledger_task_s + simulation.DEFAULT_COSTS.ledger_slice_s
    lines, ratios, driver_s = [], {}, 0.0
    for count in (1, 4, 16):
        real = replicas.measure_run(folder / f"compare-{count}", count, ROUNDS * delay_s, delay_s)
        if count == 1:
            driver_s = real["driver_cpu_ms_chunk"] / 1000  # the others are predicted with it
        tasks = -(-int(real["rest_rows"]) // replicas.CHUNK)
        chunk_s = replicas.CHUNK * delay_s / replicas.SLOTS
        ends = simulation.simulate_tasks([0.0] * count, tasks, chunk_s, 5, driver_s, ledger_s)
        cpu = tasks * driver_s / max(ends)
        lines.append([count, int(real["rest_rows"]), real["rest_s"], max(ends), real["driver_cpu"], cpu])
        ratios[f"simulated/real, {count}"] = max(ends) / real["rest_s"]
    head = ["replicas", "rows", "s", "simulated", "driver CPU", "simulated"]
    print(harness.format_table(head, lines))
    harness.print_report("scale --compare", ratios=ratios, figures={}, where=harness.describe_machine("ray"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--driven", type=int, default=100_000)
    parser.add_argument("--planned", type=int, default=1_000_000)
    delay_help = "seconds of a row in --compare: the more, the less a busy machine matters"
    parser.add_argument("--delay", type=float, default=replicas.DELAY_S, help=delay_help)
    options = parser.parse_args()
    if options.simulate:
        print_simulation(simulation.DEFAULT_COSTS)
        return
    if options.compare:
        with replicas.start_ray(16), tempfile.TemporaryDirectory() as folder:
            compare_with_runs(Path(folder), options.delay)
        return
    run_rows, tail_rows = (10_000, 1000) if options.quick else (options.driven, 3000)
    with ray_session.connect_to_ray(), tempfile.TemporaryDirectory() as folder:
        lines, figures = measure_growth(Path(folder), run_rows, options.planned)
        rates = measure_tail(Path(folder), tail_rows)
    header = ["rows", "chunks", "planned in s", "driver MiB", "rows/s", "driver CPU ms a chunk", "store peak MiB"]
    print(harness.format_table(header, lines))
    print(f"one picture in 100 of 50 times the pixels: {rates['tail']:.1f} rows/s; without: {rates['even']:.1f}")
    figures |= {f"rows_s, {name}": rate for name, rate in rates.items()}
    ratios = {"tail/even": rates["tail"] / rates["even"]}
    harness.print_report("scale", ratios=ratios, figures=figures, where=harness.describe_machine("ray"))


if __name__ == "__main__":
    main()
