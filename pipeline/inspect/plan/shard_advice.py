"""Tells how many replicas of a job one driver feeds, and how many drivers the job's replicas need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.inspect.plan.gpus import GpuEstimate
from pipeline.inspect.plan.simulation import Workload, count_fed_replicas, simulate_run
from pipeline.job.spec import Job
from pipeline.manifest.chunks import compute_chunk_rows, compute_slice_rows
from pipeline.run.progress import format_count

LONG_RUN_HOURS = 24.0  # for which more replicas are wanted than one driver feeds
SHORT_RUN_S = 600.0  # ends before more drivers pay


@dataclass(frozen=True, slots=True)
class ShardAdvice:
    """The field names are keys of `plan --json`."""

    gpu: str  # the fastest one for the job
    fed_replicas: int  # by one driver
    hours: float  # with as many
    replicas: int | None  # that the job asks for
    shards: int  # that those need
    busy_share: float  # of the time of those replicas, with one driver


def advise_shards(job: Job, row_count: int, row_bytes: float, offers: Sequence[GpuEstimate]) -> ShardAdvice | None:
    """None if one driver is enough, or if nothing is known about the speed of replicas. `row_bytes` are of the pixels
    of a row."""
    hours = {offer: offer.least_gpu_hours / offer.gpus for offer in offers if offer.least_gpu_hours}  # of one replica
    if not hours or not job.workers.generate.gpus:
        return None
    fastest = min(hours, key=lambda offer: hours[offer])
    chunk_rows, slice_rows = compute_chunk_rows(job), compute_slice_rows(job)
    rows_per_second = row_count / (3600 * hours[fastest])
    fed = count_fed_replicas(slice_rows, rows_per_second, row_bytes)
    replicas, fed_hours = job.workers.generate.max, hours[fastest] / fed
    if (replicas or 0) <= fed and (replicas or fed_hours < LONG_RUN_HOURS):
        return None
    load = Workload(row_count, chunk_rows, replicas or fed, rows_per_second, row_bytes=row_bytes)
    load = replace(load, first_replicas=job.workers.generate.min)
    one_driver = simulate_run(replace(load, slice_rows=slice_rows) if slice_rows < chunk_rows else load)
    if one_driver.seconds < SHORT_RUN_S:
        return None
    shards = -(-(replicas or fed) // fed)
    return ShardAdvice(fastest.gpu, fed, fed_hours, replicas, shards, one_driver.busy_share)


def format_shard_advice(advice: ShardAdvice) -> Iterator[str]:
    feeds = f"one driver feeds about {format_count(advice.fed_replicas, 'replica')} on {advice.gpu}"
    if advice.replicas is None:
        yield f"{feeds}, which take {advice.hours:,.0f} hours; --shards divides more replicas among several drivers"
        return
    yield f"careful: {feeds}, and workers.generate.max is {advice.replicas:,}"
    count = advice.shards
    yield f"  they would work {advice.busy_share:.0%} of their time; divide them among {count} drivers:"
    yield f"  on one cluster by submit --shards {count}, on several by run --shard 1/{count} and so on"
