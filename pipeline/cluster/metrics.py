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
from pipeline.context import RunContext
from pipeline.manifest.chunks import Chunk
from pipeline.output.commit import CommitReceipt
from pipeline.prepare import Preparer
from pipeline.run.lease import Lease

SAMPLE_INTERVAL_S = 2.0
FIRST_COUNT = 1e-9  # a counter must be seen before its first step for that to be seen as one; Ray takes no zero
TOKEN_KINDS = ("vision", "prompt", "output")
JOB_LABEL = "job_name"  # `job` is the scraper's own


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
GAUGE_BY_ENGINE_KEY = {"slots": "slots", "busy": "slots_busy", "waiting": "rows_waiting", "kv_tokens": "kv_tokens"}
GAUGE_BY_ENGINE_KEY |= {"kv_used": "kv_used"}  # what an engine calls it -> the gauge

MetricSample = dict[tuple[str, ...], float]  # (metric, value of each label ...) -> its total, or its state now


def to_prometheus_name(name: str) -> str:
    """What Prometheus calls it."""
    return f"ray_vlbatch_{name}{'_total' if METRICS[name].kind == 'counter' else ''}"


@cache
def get_instrument(name: str) -> Any:
    metric = METRICS[name]
    make = prometheus.Counter if metric.kind == "counter" else prometheus.Gauge
    return make(f"vlbatch_{name}", metric.meaning, tag_keys=(JOB_LABEL, *metric.labels))


def record_sample(
    job_name: str, sample: Mapping[tuple[str, ...], float], previous_sample: Mapping[tuple[str, ...], float]
) -> None:
    """Gauges as they are, counters by what came since."""
    for (name, *values), value in sample.items():
        tags = {JOB_LABEL: job_name, **dict(zip(METRICS[name].labels, values, strict=True))}
        if METRICS[name].kind == "gauge":
            get_instrument(name).set(value, tags)
        elif (more := value - previous_sample.get((name, *values), 0.0)) > 0:
            get_instrument(name).inc(more, tags)


def build_receipt_counter(context: RunContext, chunks: Sequence[Chunk]) -> Callable[[CommitReceipt], None]:
    """What counts the receipts of these chunks, on the driver."""
    left = sum(chunk.asked_row_count for chunk in chunks)

    def count(receipt: CommitReceipt) -> None:
        nonlocal left
        left -= receipt.answered + receipt.failed
        counted: MetricSample = {
            ("rows", "answered"): receipt.answered,
            ("rows", "failed"): receipt.failed,
            ("rows_left",): left,
            ("tokens", "vision"): receipt.vision_tokens,
            ("tokens", "prompt"): receipt.prompt_tokens,
            ("tokens", "output"): receipt.output_tokens,
            ("retries",): receipt.retries,
        }
        counted |= {("seconds", step): spent for step, spent in receipt.worker_seconds.items()}
        counted |= {("errors", *kind.split("/", 1)): rows for kind, rows in receipt.failure_counts.items()}
        record_sample(context.job.name, counted, {})

    known = [("rows", "answered"), ("rows", "failed"), *(("tokens", kind) for kind in TOKEN_KINDS), ("retries",)]
    record_sample(context.job.name, {("rows_left",): left, **dict.fromkeys(known, FIRST_COUNT)}, {})
    return count


def start_sampling(
    context: RunContext, read_sample: Callable[[], MetricSample], end_event: Event | None = None
) -> None:
    """Read a worker's totals now and then, until that, or as long as its process lives."""
    over = end_event or Event()

    def follow() -> None:
        before: MetricSample = {}
        while not over.is_set():
            now = read_sample()
            record_sample(context.job.name, now, before)
            before = now
            over.wait(SAMPLE_INTERVAL_S)

    Thread(target=follow, name="metrics", daemon=True).start()


def export_lease_age(context: RunContext, lease: Lease) -> None:
    start_sampling(context, lambda: {("lease_age_seconds",): time.monotonic() - lease.renewed_at}, lease.ended)


def export_prepare_metrics(context: RunContext, preparer: Preparer) -> None:
    start_sampling(context, lambda: {("bytes_read",): preparer.fetcher.bytes_read})


def export_generate_metrics(context: RunContext, answerer: Answerer) -> None:
    started, gpus, engine = time.monotonic(), context.job.workers.generate.gpus, answerer.engine_thread.engine

    def sample() -> MetricSample:
        said = engine.metrics()
        gauges: MetricSample = {(gauge,): said[name] for name, gauge in GAUGE_BY_ENGINE_KEY.items() if name in said}
        return {("gpu_seconds",): gpus * (time.monotonic() - started), **gauges}

    start_sampling(context, sample)
