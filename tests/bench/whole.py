"""The whole pipeline over the engine alone: rows/s of a job through Ray by rows/s of its engine fed from memory.

The scripted engine answers at a fixed service time, so what is missing from 1.0 is what surrounds an engine: workers
that start, fetching, decoding, shipping, committing. The start of Ray is left out; the start of the pools is not.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import jobfile
from pipeline.flow import Answerer, Preparer, Work
from pipeline.intake.manifest import Chunk, files
from pipeline.output.store import Store
from pipeline.run import brief, cluster, resume
from pipeline.run.signals import Signals
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: image}
prompt: {user: "What is it?"}
model: {weights: "builtin:tiny"}
engine: {kind: scripted, delay_ms: DELAY, slots: 8}
media: {max_pixels: 128*28*28}
output: {path: PLACE/out, chunk_rows: 32}
"""


def prepare(place: Path, rows: int, delay_ms: float) -> tuple[Work, tuple[Chunk, ...]]:
    names = []
    for index in range(rows):
        names.append(f"{index:05}.jpg")
        Image.effect_noise((320, 240), 40 + index % 40).convert("RGB").save(place / names[-1])
    pq.write_table(pa.table({"id": names, "image": names}), place / "manifest.parquet")
    job = jobfile.parse(JOB.replace("PLACE", str(place)).replace("DELAY", str(delay_ms)))
    found = files(job)
    work = brief.work(job, found)
    return work, resume.plan(work, found, Store(work.job.output.path)).left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--delay-ms", type=float, default=400.0)
    options = parser.parse_args()
    rows, rounds = (320, 1) if options.quick else (options.rows, options.rounds)
    with cluster.joined(), tempfile.TemporaryDirectory() as folder:
        work, chunks = prepare(Path(folder), rows, options.delay_ms)
        with closing(Preparer(work)) as preparer, closing(Answerer(work)) as answerer:
            entries = [entry for chunk in chunks for entry in preparer.prepare(chunk)]
            turn = iter(range(rounds))

            def whole() -> None:
                place = f"{work.job.output.path}/{next(turn)}"
                update = {"output": work.job.output.model_copy(update={"path": place})}
                fresh = replace(work, job=work.job.model_copy(update=update))
                assert sum(receipt.answered for receipt in cluster.run(fresh, chunks, Signals(print))) == rows

            medians = harness.in_turns({"engine": lambda: answerer.answer(entries), "pipeline": whole}, rounds=rounds)
    rates = {name: rows / seconds for name, seconds in medians.items()}
    print(harness.table(["side", "rows/s"], [[name, rate] for name, rate in rates.items()]))
    harness.report(
        "pipeline",
        ratios={"pipeline/engine": rates["pipeline"] / rates["engine"]},
        figures={f"{name}_rows_s": rate for name, rate in rates.items()} | {"rows": float(rows)},
        where=harness.machine("ray"),
    )


if __name__ == "__main__":
    main()
