"""What a run counts -> Prometheus, by way of Ray.

One table says every metric; the dashboard, the alerts and the tests are made from it, so that names cannot drift
apart. What comes with a receipt is counted once, on the driver. What only a worker knows is kept there as plain
totals, by code that does not know Ray, and read every few seconds by a thread: nothing waits for a counter.
Ray adds WorkerId and NodeAddress to each, writes `ray_` before a name, and `_total` behind a counter's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Event, Thread
from typing import Any

from ray.util import metrics as prometheus

from pipeline.answer import Answerer
from pipeline.context import Work
from pipeline.manifest.chunks import Chunk
from pipeline.output.commit import Receipt
from pipeline.prepare import Preparer
from pipeline.run.lease import Lease

EVERY_S = 2.0
NOTHING = 1e-9  # a counter must be seen before its first step for that to be seen as one; Ray takes no zero
TOKENS = ("vision", "prompt", "output")
JOB = "job_name"  # `job` is the scraper's own


@dataclass(frozen=True, slots=True)
class Metric:
    kind: str  # "counter" or "gauge"
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = {
    "rows": Metric("counter", "rows done, by state: answered or failed", ("state",)),
    "rows_left": Metric("gauge", "rows of this run that are neither answered nor failed"),
    "tokens": Metric("counter", "tokens of answered rows, by kind: vision, prompt or output", ("kind",)),
    "errors": Metric("counter", "rows that failed, by stage and kind", ("stage", "kind")),
    "retries": Metric("counter", "questions asked again because the answer did not fit"),
    "bytes_read": Metric("counter", "bytes of media that arrived"),
    "seconds": Metric("counter", "seconds of workers, by step; of engines: worked or waited", ("step",)),
    "gpu_seconds": Metric("counter", "seconds times GPUs that replicas have held; times a price: the cost"),
    "slots": Metric("gauge", "rows that the engines can answer at once"),
    "slots_busy": Metric("gauge", "rows being answered"),
    "rows_waiting": Metric("gauge", "rows that wait in the engines for a slot"),
    "kv_tokens": Metric("gauge", "tokens that the key-value caches hold at most"),
    "kv_used": Metric("gauge", "tokens in them"),
    "lease_age_seconds": Metric("gauge", "seconds since the run last renewed its lease on the output"),
}
ENGINE = {"slots": "slots", "busy": "slots_busy", "waiting": "rows_waiting", "kv_tokens": "kv_tokens"}
ENGINE |= {"kv_used": "kv_used"}  # what an engine calls it -> the gauge

Sample = dict[tuple[str, ...], float]  # (metric, value of each label ...) -> its total, or its state now


def exported(name: str) -> str:
    """What Prometheus calls it."""
    return f"ray_vlbatch_{name}{'_total' if METRICS[name].kind == 'counter' else ''}"


@cache
def instrument(name: str) -> Any:
    metric = METRICS[name]
    make = prometheus.Counter if metric.kind == "counter" else prometheus.Gauge
    return make(f"vlbatch_{name}", metric.meaning, tag_keys=(JOB, *metric.labels))


def record(job_name: str, sample: Mapping[tuple[str, ...], float], before: Mapping[tuple[str, ...], float]) -> None:
    """Gauges as they are, counters by what came since."""
    for (name, *values), value in sample.items():
        tags = {JOB: job_name, **dict(zip(METRICS[name].labels, values, strict=True))}
        if METRICS[name].kind == "gauge":
            instrument(name).set(value, tags)
        elif (more := value - before.get((name, *values), 0.0)) > 0:
            instrument(name).inc(more, tags)


def counter_of(work: Work, chunks: Sequence[Chunk]) -> Callable[[Receipt], None]:
    """What counts the receipts of these chunks, on the driver."""
    left = sum(chunk.asked for chunk in chunks)

    def count(receipt: Receipt) -> None:
        nonlocal left
        left -= receipt.answered + receipt.failed
        counted: Sample = {
            ("rows", "answered"): receipt.answered,
            ("rows", "failed"): receipt.failed,
            ("rows_left",): left,
            ("tokens", "vision"): receipt.vision_tokens,
            ("tokens", "prompt"): receipt.prompt_tokens,
            ("tokens", "output"): receipt.output_tokens,
            ("retries",): receipt.retries,
        }
        counted |= {("seconds", step): spent for step, spent in receipt.seconds.items()}
        counted |= {("errors", *kind.split("/", 1)): rows for kind, rows in receipt.kinds.items()}
        record(work.job.name, counted, {})

    known = [("rows", "answered"), ("rows", "failed"), *(("tokens", kind) for kind in TOKENS), ("retries",)]
    record(work.job.name, {("rows_left",): left, **dict.fromkeys(known, NOTHING)}, {})
    return count


def watch(work: Work, sample: Callable[[], Sample], ended: Event | None = None) -> None:
    """Read a worker's totals now and then, until that, or as long as its process lives."""
    over = ended or Event()

    def follow() -> None:
        before: Sample = {}
        while not over.is_set():
            now = sample()
            record(work.job.name, now, before)
            before = now
            over.wait(EVERY_S)

    Thread(target=follow, name="metrics", daemon=True).start()


def watch_lease(work: Work, lease: Lease) -> None:
    watch(work, lambda: {("lease_age_seconds",): time.monotonic() - lease.renewed}, lease.over)


def watch_prepare(work: Work, preparer: Preparer) -> None:
    watch(work, lambda: {("bytes_read",): preparer.fetcher.bytes_read})


def watch_generate(work: Work, answerer: Answerer) -> None:
    started, gpus, engine = time.monotonic(), work.job.workers.generate.gpus, answerer.desk.engine

    def sample() -> Sample:
        said = engine.metrics()
        gauges: Sample = {(gauge,): said[name] for name, gauge in ENGINE.items() if name in said}
        return {("gpu_seconds",): gpus * (time.monotonic() - started), **gauges}

    watch(work, sample)
