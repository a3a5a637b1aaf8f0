"""From a thousand to a million rows: the driver's cost for planning and driving them, and the load of the object store.

    python tests/bench/scale.py [--quick] [--driven N] [--planned N]

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
from pipeline.job import job_loader
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume
from pipeline.run.signals import StopSignals
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, MEDIA}
PROMPT
model: {weights: "builtin:tiny"}
engine: {kind: scripted, slots: 64, default: "{id}", delay_ms: DELAY}
output: {path: PLACE/out, chunk_rows: CHUNK}
"""
CHUNK, LIGHT, HEAVY = 256, (320, 240), (2240, 1680)  # chunk_rows of the text rows; the sizes of two pictures


def planned(place: Path, columns: dict[str, list[str]], **said: str) -> tuple[RunContext, resume.ResumePlan, float]:
    place.mkdir()
    pq.write_table(pa.table(columns), place / "manifest.parquet")
    text = JOB.replace("PLACE", str(place))
    for name, value in {"MEDIA": "messages: chat", "PROMPT": "", "DELAY": "0", "CHUNK": str(CHUNK), **said}.items():
        text = text.replace(name, value)
    job = job_loader.parse_job(text)
    work, started = preflight.build_run_context(job, list_manifest_files(job)), time.monotonic()
    return (
        work,
        resume.build_resume_plan(
            work, list_manifest_files(job), Dataset(OutputStore(job.output.path), work.fingerprint)
        ),
        time.monotonic() - started,
    )


@contextmanager
def store_peak() -> Iterator[list[float]]:
    """Track the peak MiB of the object store."""
    peak, stopped = [0.0], Event()

    def look() -> None:
        while not stopped.wait(0.25):
            peak[0] = max(peak[0], harness.store().object_store_bytes_used / 2**20)

    thread = Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def drive(work: RunContext, plan: resume.ResumePlan) -> dict[str, float]:
    """Rows per second from the first chunk to the last, and their cost for the driver."""
    driver, marks = psutil.Process(), []
    with store_peak() as peak:
        for receipt in RayRunner().run_chunks(work, plan.remaining_chunks, StopSignals(print)):
            assert receipt.failed == 0
            marks.append((time.monotonic(), sum(driver.cpu_times()[:2]), receipt.answered))
    (first, cpu, rows), (last, cpu_end, _) = marks[0], marks[-1]
    took, chunks = last - first, max(1, len(marks) - 1)
    return {
        "rows_s": (sum(answered for *_, answered in marks) - rows) / took if took else 0.0,
        "driver_ms_chunk": 1000 * (cpu_end - cpu) / chunks,
        "driver_mib": driver.memory_info().rss / 2**20,
        "store_mib": peak[0],
    }


def growing(place: Path, most_driven: int, most_planned: int) -> tuple[list[list[object]], dict[str, float]]:
    lines: list[list[object]] = []
    figures: dict[str, float] = {}
    count = 1000
    while count <= most_planned:
        names = [f"row {number}" for number in range(count)]
        chats = [json.dumps([{"role": "user", "content": name}]) for name in names]
        work, plan, seconds = planned(place / str(count), {"id": names, "chat": chats})
        driven = drive(work, plan) if count <= most_driven else {}
        mib = psutil.Process().memory_info().rss / 2**20
        costs = [driven.get(name, "-") for name in ("rows_s", "driver_ms_chunk", "store_mib")]
        lines.append([f"{count:,}", len(plan.remaining_chunks), seconds, driven.get("driver_mib", mib), *costs])
        figures |= {f"plan_s, {count}": seconds, f"driver_mib, {count}": mib}
        figures |= {f"{name}, {count}": value for name, value in driven.items()}
        print(f"  {count:,} rows: planned in {seconds:.1f} s, {driven}", file=sys.stderr)
        count *= 10
    return lines, figures


def tailed(place: Path, rows: int) -> dict[str, float]:
    """Rows per second without and with one heavy picture in a hundred."""
    noise = np.random.default_rng(1).integers(0, 256, (42, 56, 3), dtype=np.uint8)
    rates = {}
    for name, heavy in (("even", LIGHT), ("tail", HEAVY)):
        folder, media = place / name, [f"{name}-{number:05}.jpg" for number in range(rows)]
        for number, each in enumerate(media):
            picture = Image.fromarray(noise).resize(heavy if number % 100 == 50 else LIGHT)
            picture.save(place / each, quality=92)
        columns = {"id": media, "media": [str(place / each) for each in media], "text": media}
        said = {
            "MEDIA": f'media: media, roots: ["{place}"]',
            "PROMPT": 'prompt: {user: "{text}"}',
            "DELAY": "1000",
            "CHUNK": "32",
        }
        rates[name] = drive(*planned(folder, columns, **said)[:2])["rows_s"]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--driven", type=int, default=100_000)
    parser.add_argument("--planned", type=int, default=1_000_000)
    options = parser.parse_args()
    driven, tail = (10_000, 1000) if options.quick else (options.driven, 3000)
    with ray_session.connect_to_ray(), tempfile.TemporaryDirectory() as folder:
        lines, figures = growing(Path(folder), driven, options.planned)
        rates = tailed(Path(folder), tail)
    header = ["rows", "chunks", "planned in s", "driver MiB", "rows/s", "driver CPU ms a chunk", "store peak MiB"]
    print(harness.table(header, lines))
    print(f"one picture in 100 of 50 times the pixels: {rates['tail']:.1f} rows/s; without: {rates['even']:.1f}")
    figures |= {f"rows_s, {name}": rate for name, rate in rates.items()}
    ratios = {"tail/even": rates["tail"] / rates["even"]}
    harness.report("scale", ratios=ratios, figures=figures, where=harness.machine("ray"))


if __name__ == "__main__":
    main()
