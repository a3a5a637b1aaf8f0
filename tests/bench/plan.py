"""The cost of planning an object: reading headers of pictures in S3, against fetching and opening them as a run does.

    python tests/bench/plan.py [--quick] [--objects N]

A real S3 server runs on this machine. Both sides are the plan's own steps over a share of the same objects. CPU seconds
are those of the planning process and its children, without the server's.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from pipeline.context import RunContext
from pipeline.inspect.plan.survey import survey_chunks
from pipeline.job import job_loader
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer
from pipeline.run import preflight, resume
from tests.bench import harness
from tests.bench.prepare import draw_photo
from tests.seaweed import KEY, SECRET, Seaweed

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, stores: "s3://scans", id: id, media: image}
prompt: {user: "What is it?"}
model: {weights: "builtin:tiny"}
output: {path: PLACE/out}
"""
SIZES = ((640, 480), (480, 640), (1024, 768), (500, 375), (1280, 960))
SHARE = 10  # one in SHARE objects is read whole
PARALLEL_UPLOADS = 500


def write_objects(place: Path, url: str, objects: int) -> None:
    pictures = []
    for size in SIZES:
        sink = io.BytesIO()
        draw_photo(size).save(sink, "JPEG", quality=80)
        pictures.append(sink.getvalue())
    store = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url, skip_instance_cache=True)
    store.mkdir("scans")
    keys = [f"scans/{number:06}.jpg" for number in range(objects)]
    for start in range(0, objects, PARALLEL_UPLOADS):
        numbers = range(start, min(start + PARALLEL_UPLOADS, objects))
        store.pipe({keys[number]: pictures[number % len(pictures)] for number in numbers})
    rows = {"id": keys, "image": [f"s3://{key}" for key in keys]}
    pq.write_table(pa.table(rows), place / "manifest.parquet")


def prepare_chunks(context: RunContext, chunks: list[Chunk]) -> Iterator[object]:
    """Prepare the chunks as a run does."""
    with closing(Preparer(context)) as preparer:
        for chunk in chunks:
            yield from preparer.prepare_chunk(chunk)


def measure_cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--objects", type=int, default=10_000)
    options = parser.parse_args()
    objects = 1000 if options.quick else options.objects
    lines, figures = [], {}
    with tempfile.TemporaryDirectory() as folder, Seaweed(Path(folder) / "weed") as server:
        os.environ.update(server.environment)
        write_objects(Path(folder), server.url, objects)
        job = job_loader.parse_job(JOB.replace("PLACE", folder))
        manifest_files = list_manifest_files(job)
        context = preflight.build_run_context(job, manifest_files)
        chunks = list(
            resume.build_resume_plan(
                context, manifest_files, Dataset(OutputStore(context.job.output.path), context.fingerprint)
            ).remaining_chunks
        )
        sampled_chunks = chunks[: max(1, len(chunks) // SHARE)]
        survey_chunks(context, sampled_chunks[:1])
        sides = {
            "headers": (chunks, lambda: survey_chunks(context, chunks)),
            "whole": (sampled_chunks, lambda: list(prepare_chunks(context, sampled_chunks))),
        }
        for name, (side_chunks, side) in sides.items():
            rows = sum(chunk.asked_row_count for chunk in side_chunks)
            cpu_seconds, start = measure_cpu_seconds(), time.perf_counter()
            side()
            seconds, cpu_seconds = time.perf_counter() - start, measure_cpu_seconds() - cpu_seconds
            lines.append([name, f"{rows:,}", seconds, cpu_seconds, 1000 * seconds / rows, 1000 * cpu_seconds / rows])
            figures |= {
                f"{name}_ms": 1000 * seconds / rows,
                f"{name}_cpu_ms": 1000 * cpu_seconds / rows,
                f"{name}_s": seconds,
            }
    print(
        harness.format_table(["read", "objects", "seconds", "CPU seconds", "ms an object", "CPU ms an object"], lines)
    )
    ratios = {"speed": figures["whole_ms"] / figures["headers_ms"]}
    harness.print_report(
        "plan", ratios=ratios, figures=figures, where=harness.describe_machine("aiobotocore", "pillow")
    )


if __name__ == "__main__":
    main()
