"""The whole pipeline compared with its engine alone: rows/s of a job on Ray over rows/s of the engine fed from memory.

It runs twice: with the scripted engine, which answers after a fixed time, so that any loss comes from the work around
an engine; and with the built-in model, which competes for cores with the workers that prepare its input. Both sides
answer the same chunks, with as many in flight, and the last three quarters are timed; the start is reported apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.answer import Answerer
from pipeline.builtin.scenes import create_scene
from pipeline.cluster import pools, ray_session
from pipeline.cluster.ray_runner import RayRunner
from pipeline.context import RunContext
from pipeline.job import job_loader
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer
from pipeline.run import preflight, resume
from pipeline.run.signals import StopSignals
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: image}
prompt: {user: "Describe what there is to see."}
model: {weights: "builtin:tiny"}
engine: ENGINE
answer: {max_new_tokens: 64}
output: {path: PLACE/out, chunk_rows: 32}
"""
ENGINES = {
    "scripted": "{kind: scripted, delay_ms: DELAY, slots: 32}",
    "built-in": "{kind: torch}",
}


def write_pictures(folder: Path, rows: int) -> None:
    names = []
    for number in range(rows):
        names.append(f"{number:05}.jpg")
        picture = create_scene("evaluate", "caption", 300_000 + number).draw_frame(0).convert("RGB")
        picture.resize((640, 480)).save(folder / names[-1], quality=92)
    pq.write_table(pa.table({"id": names, "image": names}), folder / "manifest.parquet")


def plan_job(folder: Path, engine: str, rows: int) -> tuple[RunContext, tuple[Chunk, ...]]:
    job = job_loader.parse_job(JOB.replace("PLACE", str(folder)).replace("ENGINE", engine))
    context = preflight.build_run_context(job, list_manifest_files(job))
    path = f"{context.job.output.path}/{time.monotonic_ns()}"
    fresh_job = context.job.model_copy(update={"output": context.job.output.model_copy(update={"path": path})})
    return replace(context, job=fresh_job), resume.build_resume_plan(
        context, list_manifest_files(job), Dataset(OutputStore(path), context.fingerprint), row_limit=rows
    ).remaining_chunks


def measure_engine_alone(context: RunContext, chunks: tuple[Chunk, ...]) -> tuple[float, float]:
    """Rows per second of the engine fed from memory, and the CPU milliseconds for preparing a row."""
    with closing(Preparer(context)) as preparer, closing(Answerer(context)) as answerer:
        preparer.prepare_chunk(chunks[0])
        started = time.process_time()
        prepared = [preparer.prepare_chunk(chunk) for chunk in chunks]
        cpu_seconds = time.process_time() - started
        answerer.answer_items(prepared[0][:1])
        with ThreadPoolExecutor(pools.count_concurrent_calls(context.job)) as executor:
            futures = [executor.submit(answerer.answer_items, entries) for entries in prepared]
            rate = compute_steady_rate((time.monotonic(), len(future.result())) for future in as_completed(futures))
    return rate, 1000 * cpu_seconds / sum(map(len, prepared))


def measure_pipeline(context: RunContext, chunks: tuple[Chunk, ...]) -> tuple[float, float, Counter[str]]:
    """Rows per second, seconds to the first answer, and the workers' time by step."""
    marks, step_seconds, started = [], Counter[str](), time.monotonic()
    for receipt in RayRunner().run_chunks(context, chunks, StopSignals(print)):
        assert receipt.failed == 0
        marks.append((time.monotonic(), receipt.answered))
        step_seconds.update(receipt.worker_seconds if len(marks) > 1 else {})
    return compute_steady_rate(marks), marks[0][0] - started, step_seconds


def compute_steady_rate(marks: Iterable[tuple[float, int]]) -> float:
    """Rows per second of the last three quarters of the chunks, because the first ones arrive together."""
    ordered = sorted(marks)
    (first, _), *others = ordered[len(ordered) // 4 :]
    return sum(rows for _, rows in others) / (others[-1][0] - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--delay-ms", type=float, default=1000.0)
    options = parser.parse_args()
    rows = 768 if options.quick else options.rows
    lines, ratios, figures = [], {}, {}
    with ray_session.connect_to_ray(), tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), rows)
        for name, engine in ENGINES.items():
            context, chunks = plan_job(Path(folder), engine.replace("DELAY", str(options.delay_ms)), rows)
            pipeline_rate, start, step_seconds = measure_pipeline(context, chunks)
            engine_rate, prepare_ms = measure_engine_alone(context, chunks)
            waited_share = step_seconds["waited"] / (step_seconds["worked"] + step_seconds["waited"])
            row_ms = {
                step: 1000 * step_seconds[step] / rows for step in ("read", "fetch", "decode", "prompt", "commit")
            }
            print(f"  {name}: {pipeline_rate:.1f} of {engine_rate:.1f} rows/s", file=sys.stderr)
            lines.append(
                [
                    name,
                    engine_rate,
                    pipeline_rate,
                    pipeline_rate / engine_rate,
                    f"{waited_share:.1%}",
                    start,
                    prepare_ms,
                    *row_ms.values(),
                ]
            )
            ratios[f"pipeline/engine, {name}"] = pipeline_rate / engine_rate
            figures |= {f"rows_s, {name}": pipeline_rate, f"start_s, {name}": start, f"waited, {name}": waited_share}
    steps = [f"{step} ms" for step in row_ms]
    header = [
        "engine",
        "alone rows/s",
        "pipeline rows/s",
        "ratio",
        "engine waited",
        "start s",
        "prepare CPU ms",
        *steps,
    ]
    print(harness.format_table(header, lines))
    harness.print_report(
        "whole_pipeline", ratios=ratios, figures=figures, where=harness.describe_machine("ray", "torch")
    )


if __name__ == "__main__":
    main()
