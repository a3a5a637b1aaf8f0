"""Rows per second against the number of replicas: how many one driver can feed, and what a chunk costs the driver.

The scripted engine answers after a fixed time, so more replicas cost this machine only the work around them. Rows are
text, so nothing is decoded, and no worker imports torch (checked). The start of the pools is not measured. The CPU
seconds per chunk tell how many replicas one driver can schedule at most.

    python tests/bench/replicas.py --growth    # how a pool grows from one to four replicas that load for 5 s each
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.cluster.ray_runner import RayRunner
from pipeline.cluster.ray_session import require_random_token
from pipeline.context import RunContext
from pipeline.job import job_loader
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset, write_run_document
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume
from pipeline.run.runner import WorkInFlight
from pipeline.run.signals import StopSignals
from tests.bench import harness

SLOTS, DELAY_S, CHUNK = 32, 4.0, 16
JOB = f"""
name: bench
input: {{manifest: PLACE/manifest.parquet, id: id, messages: chat}}
model: {{weights: "builtin:tiny"}}
engine: {{kind: scripted, delay_ms: DELAY, slots: {SLOTS}, start_ms: START}}
workers: {{prepare: {{max: 2}}, generate: {{min: FIRST, max: REPLICAS}}}}
output: {{path: PLACE/out, chunk_rows: {CHUNK}}}
"""


@contextmanager
def start_ray(replicas: int) -> Iterator[None]:
    with require_random_token():
        ray.init(address="local", num_cpus=replicas + 2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


def plan_rows(folder: Path, rows: int, **settings: float) -> tuple[RunContext, resume.ResumePlan]:
    """`settings` are filled into JOB."""
    folder.mkdir()
    names = [f"row {number}" for number in range(rows)]
    chats = [json.dumps([{"role": "user", "content": name}]) for name in names]
    pq.write_table(pa.table({"id": names, "chat": chats}), folder / "manifest.parquet")
    text = JOB.replace("PLACE", str(folder))
    for name, value in settings.items():
        text = text.replace(name.upper(), str(value))
    job = job_loader.parse_job(text)
    context = preflight.build_run_context(job, list_manifest_files(job))
    dataset = Dataset(OutputStore(job.output.path), context.fingerprint)
    plan = resume.build_resume_plan(context, list_manifest_files(job), dataset)
    write_run_document(dataset.store, context.run_id, "job", "{}")  # workers look for it
    return context, plan


def measure_run(folder: Path, replicas: int, seconds: float, delay_s: float = DELAY_S) -> dict[str, float]:
    """The rates of the middle of one run: rows, the driver's CPU and memory, the replicas' work."""
    rows = int(replicas * SLOTS * (seconds / delay_s + 8))  # a run begins and ends with fewer rows in flight
    context, plan = plan_rows(folder, rows, replicas=replicas, first=replicas, delay=1000 * delay_s, start=0)
    driver, answered_rows = psutil.Process(), 0
    marks: list[tuple[float, float, int]] = []
    rest_rows, started_at, ended_at = 0, 0.0, 0.0
    step_seconds = Counter[str]()
    for receipt in RayRunner().run_chunks(context, plan.remaining_chunks, StopSignals(print)):
        assert receipt.failed == 0
        answered_rows += receipt.answered
        ended_at = time.monotonic()
        if not started_at and count_started_replicas() == replicas:
            assert is_without_torch(), "a replica imports torch"
            started_at = ended_at
        if started_at and ended_at > started_at + delay_s / 2:  # chunks end in bursts: not those of the first one
            rest_rows += receipt.answered
        if started_at and answered_rows <= rows - 2 * replicas * SLOTS:
            marks.append((time.monotonic(), sum(driver.cpu_times()[:2]), receipt.answered))
            step_seconds.update(receipt.worker_seconds)
    assert answered_rows == rows
    (start, cpu, _), (end, cpu_end, _) = marks[0], marks[-1]
    whole_rounds = (end - start) // delay_s  # chunks end in bursts, one per round, so only whole rounds count
    rows_in_rounds = sum(answered for when, _, answered in marks[1:] if when <= start + whole_rounds * delay_s)
    return {
        "rows_s": rows_in_rounds / (whole_rounds * delay_s),
        "rest_rows": rest_rows,  # that were answered since the first burst after all replicas had started
        "rest_s": ended_at - started_at,
        "driver_cpu": (cpu_end - cpu) / (end - start),
        "driver_cpu_ms_chunk": 1000 * (cpu_end - cpu) / len(marks[1:]),
        "driver_mib": driver.memory_info().rss / 2**20,
        "worked": step_seconds["worked"] / (step_seconds["worked"] + step_seconds["waited"]),
    }


def measure_growth(folder: Path, load_s: float) -> dict[str, float]:
    """The seconds at which one to four replicas were ready, and how many processes of replicas there were."""
    rows = 4 * SLOTS * 20
    context, plan = plan_rows(folder, rows, replicas=4, first=1, delay=1000 * DELAY_S, start=1000 * load_s)
    ready_at: dict[int, float] = {}
    processes: set[int] = set()
    started = time.monotonic()

    def look(work: WorkInFlight) -> None:
        with suppress(psutil.NoSuchProcess):
            processes.update(replica.pid for replica in list_replicas())
        for count in range(1, work.replicas_ready + 1):
            ready_at.setdefault(count, time.monotonic() - started)

    receipts = RayRunner().run_chunks(context, plan.remaining_chunks, StopSignals(print), look)
    assert sum(receipt.answered for receipt in receipts) == rows
    figures = {f"ready_{count}_s": seconds for count, seconds in ready_at.items()}
    return {**figures, "processes": len(processes), "seconds": time.monotonic() - started}


def list_replicas() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "GenerateWorker" in " ".join(process.cmdline())]


def count_started_replicas() -> int:
    return sum("__init__" not in " ".join(process.cmdline()) for process in list_replicas())


def is_without_torch() -> bool:
    """Whether no replica has loaded torch."""
    workers = list_replicas()
    return bool(workers) and not any(
        "libtorch" in mapping.path for worker in workers for mapping in worker.memory_maps()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=40.0, help="of work for each replica")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    if options.growth:
        with start_ray(4), tempfile.TemporaryDirectory() as folder:
            figures = measure_growth(Path(folder) / "growth", load_s=5.0)
        harness.print_report("replicas --growth", ratios={}, figures=figures, where=harness.describe_machine("ray"))
        return
    counts, seconds = ((1, 16), 12.0) if options.quick else ((1, 2, 4, 8, 16), options.seconds)
    with start_ray(max(counts)), tempfile.TemporaryDirectory() as folder:
        results = {count: measure_run(Path(folder) / str(count), count, seconds) for count in counts}
    ideal = SLOTS / DELAY_S
    lines = [
        [
            count,
            result["rows_s"],
            result["rows_s"] / count / ideal,
            result["worked"],
            result["driver_cpu"],
            result["driver_mib"],
        ]
        for count, result in results.items()
    ]
    print(harness.format_table(["replicas", "rows/s", "of linear", "worked", "driver CPU", "driver MiB"], lines))
    largest = max(counts)
    chunks_s = 1000 / results[largest]["driver_cpu_ms_chunk"]
    print(f"one driver: {chunks_s:.0f} chunks/s, as many replicas as answer a chunk each second")
    harness.print_report(
        "replicas",
        ratios={f"linear_{count}": result["rows_s"] / count / ideal for count, result in results.items()},
        figures={**results[largest], "driver_chunks_s": chunks_s, "replicas": float(largest)},
        where=harness.describe_machine("ray"),
    )


if __name__ == "__main__":
    main()
