"""Exports the metrics of a run to Prometheus through Ray.

The table METRICS defines them all; the dashboard, the alerts and the tests are generated from it. The driver counts
what receipts hold. Workers keep other totals in code that does not know Ray, and a thread reads them every few
seconds, so that no row waits for a metric. Ray adds the labels WorkerId and NodeAddress, the prefix `ray_`, and the
suffix `_total` of counters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from threading import Event, Thread
from typing import Any

from ray.util import metrics as prometheus

from pipeline.answer import Answerer
from pipeline.context import RunContext
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.output.commit import CommitReceipt
from pipeline.prepare import Preparer
from pipeline.run.lease import Lease

SAMPLE_INTERVAL_S = 2.0
FIRST_COUNT = 1e-9  # Prometheus sees an increase only from an earlier sample, and Ray exports no zero
TOKEN_KINDS = ("vision", "prompt", "output")
JOB_LABEL = "job_name"  # Prometheus itself sets `job`


@dataclass(frozen=True, slots=True)
class Metric:
    kind: str  # "counter" or "gauge"
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = {
    "rows": Metric("counter", "rows done, by state: answered or failed", ("state",)),
    "rows_left": Metric("gauge", "rows of this run that are neither answered nor failed"),
    "tokens": Metric("counter", "tokens of all replies, by kind: vision, prompt or output", ("kind",)),
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
GAUGE_BY_ENGINE_KEY = {  # by the key in Engine.metrics()
    "slots": "slots",
    "busy": "slots_busy",
    "waiting": "rows_waiting",
    "kv_tokens": "kv_tokens",
    "kv_used": "kv_used",
}

MetricSample = dict[tuple[str, ...], float]  # by (metric, label values ...): the total of a counter, or a gauge


def to_prometheus_name(name: str) -> str:
    return f"ray_vlbatch_{name}{'_total' if METRICS[name].kind == 'counter' else ''}"


@cache
def get_instrument(name: str) -> Any:
    metric = METRICS[name]
    make = prometheus.Counter if metric.kind == "counter" else prometheus.Gauge
    return make(f"vlbatch_{name}", metric.meaning, tag_keys=(JOB_LABEL, *metric.labels))


def record_sample(
    job_name: str, sample: Mapping[tuple[str, ...], float], previous_sample: Mapping[tuple[str, ...], float]
) -> None:
    """Set gauges, and increase counters by the difference to the previous sample."""
    for (name, *values), value in sample.items():
        tags = {JOB_LABEL: job_name, **dict(zip(METRICS[name].labels, values, strict=True))}
        if METRICS[name].kind == "gauge":
            get_instrument(name).set(value, tags)
        elif (increase := value - previous_sample.get((name, *values), 0.0)) > 0:
            get_instrument(name).inc(increase, tags)


def build_receipt_counter(context: RunContext, chunks: ChunkTable) -> Callable[[CommitReceipt], None]:
    """A function that counts the receipts of these chunks, on the driver."""
    rows_left = chunks.asked_row_count

    def count_receipt(receipt: CommitReceipt) -> None:
        nonlocal rows_left
        rows_left -= receipt.answered + receipt.failed
        sample: MetricSample = {
            ("rows", "answered"): receipt.answered,
            ("rows", "failed"): receipt.failed,
            ("rows_left",): rows_left,
            ("tokens", "vision"): receipt.tokens.vision,
            ("tokens", "prompt"): receipt.tokens.prompt,
            ("tokens", "output"): receipt.tokens.output,
            ("retries",): receipt.retries,
        }
        sample |= {("seconds", step): seconds for step, seconds in receipt.worker_seconds.items()}
        sample |= {("errors", *kind.split("/", 1)): rows for kind, rows in receipt.failure_counts.items()}
        record_sample(context.job.name, sample, {})

    counters = [("rows", "answered"), ("rows", "failed"), *(("tokens", kind) for kind in TOKEN_KINDS), ("retries",)]
    record_sample(context.job.name, {("rows_left",): rows_left, **dict.fromkeys(counters, FIRST_COUNT)}, {})
    return count_receipt


def start_sampling(
    context: RunContext, read_sample: Callable[[], MetricSample], end_event: Event | None = None
) -> None:
    """Read the totals of a process every few seconds, until the event is set or the process ends."""
    ended = end_event or Event()

    def poll() -> None:
        previous_sample: MetricSample = {}
        while not ended.is_set():
            sample = read_sample()
            record_sample(context.job.name, sample, previous_sample)
            previous_sample = sample
            ended.wait(SAMPLE_INTERVAL_S)

    Thread(target=poll, name="metrics", daemon=True).start()


def export_lease_age(context: RunContext, lease: Lease) -> None:
    start_sampling(context, lambda: {("lease_age_seconds",): time.monotonic() - lease.renewed_at}, lease.ended)


def export_prepare_metrics(context: RunContext, preparer: Preparer) -> None:
    start_sampling(context, lambda: {("bytes_read",): preparer.fetcher.bytes_read})


def export_generate_metrics(context: RunContext, answerer: Answerer) -> None:
    started, gpus, engine = time.monotonic(), context.job.workers.generate.gpus, answerer.engine_thread.engine

    def read_sample() -> MetricSample:
        values = engine.metrics()
        gauges: MetricSample = {(gauge,): values[key] for key, gauge in GAUGE_BY_ENGINE_KEY.items() if key in values}
        return {("gpu_seconds",): gpus * (time.monotonic() - started), **gauges}

    start_sampling(context, read_sample)
