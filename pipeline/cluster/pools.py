"""A job, what a cluster holds -> how many workers of each pool, and with what.

Ray waits without a word for what never comes. So what a fixed cluster cannot hold is refused; one that is said to
have an autoscaler is asked to grow, by workers that wait for their nodes, and while it has not, that is told.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Thread

import ray

from pipeline.errors import JobError
from pipeline.job.spec import GpuPoolSection, Job
from pipeline.manifest.chunks import compute_chunk_rows
from pipeline.model.engines.base import get_engine_type
from pipeline.run import log

AUTOSCALING_VARIABLE = "VLBATCH_AUTOSCALING"  # set on the head of a cluster that has an autoscaler
MESSAGE_INTERVAL_S = 60.0
GIB = 2**30
MIN_CALLS, MAX_CALLS = (
    3,
    8,
)  # calls of a replica: one being answered, one behind it, one committing; prepared they weigh 2 GiB


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Most workers: None where the cluster grows and the job names no end."""

    prepare_max: int | None
    prepare_cpus: float
    generate_max: int | None
    generate_cpus: float


def compute_pool_sizes(job: Job, node_resources: Sequence[Mapping[str, float]], *, can_grow: bool = False) -> PoolSizes:
    """`nodes` are the resources of each."""
    prepare, generate = job.workers.prepare, job.workers.generate
    if can_grow:
        generate_max = generate.max if generate.gpus else generate.max or generate.min
        return PoolSizes(prepare.max, prepare.cpus, generate_max, generate.cpus)
    check_memory(job, [node.get("memory", math.inf) for node in node_resources])
    each = [node.get("CPU", 0.0) for node in node_resources]
    wanted, widest = prepare.min * prepare.cpus + generate.min * generate.cpus, max(prepare.cpus, generate.cpus)
    share = min(1.0, sum(each) / (wanted or 1.0), max(each) / (widest or 1.0))
    prepare_cpus, generate_cpus = (max(0.01, int(100 * share * cpus) / 100) for cpus in (prepare.cpus, generate.cpus))
    places = count_possible_replicas(node_resources, generate) if generate.gpus else generate.max or generate.min
    generate_max = max(generate.min, min(generate.max or places, places))
    room = int((sum(each) - generate_max * generate_cpus + 1e-6) / prepare_cpus)
    return PoolSizes(
        prepare_max=max(prepare.min, min(prepare.max or room, max(room, 1))),
        prepare_cpus=prepare_cpus,
        generate_max=generate_max,
        generate_cpus=generate_cpus,
    )


def count_concurrent_calls(job: Job) -> int:
    """Chunks that a replica is called with at once: where they are of few rows, videos, it takes more to fill it."""
    slots = get_engine_type(job).count_slots(job)
    return min(MAX_CALLS, MIN_CALLS + (slots - 1) // compute_chunk_rows(job))


def count_possible_replicas(node_resources: Sequence[Mapping[str, float]], pool: GpuPoolSection) -> int:
    """How many replicas there are GPUs for: each is on one node."""
    kind = f"accelerator_type:{pool.accelerator}"
    there = [node.get("GPU", 0.0) for node in node_resources if pool.accelerator is None or kind in node]
    places = sum(int(gpus / pool.gpus + 1e-6) for gpus in there)
    if places < pool.min:
        of = f" of {pool.accelerator}" if pool.accelerator else ""
        have = ", ".join(f"{gpus:g}" for gpus in there if gpus) or "none"
        raise JobError(
            f"workers.generate asks for {pool.min} x {pool.gpus:g} GPUs{of}, each time on one node, and the nodes "
            f"have {have}; lower it, set workers.generate.gpus to 0 to run on CPU, or {AUTOSCALING_VARIABLE}=1 where an "
            "autoscaler brings them"
        )
    return places


def check_memory(job: Job, node_memory: Sequence[float]) -> None:
    """Where the least number of workers has no room: each is on one node."""
    wanted = [pool.memory or 0 for pool in (job.workers.prepare, job.workers.generate) for _ in range(pool.min)]
    if max(wanted) > max(node_memory) or sum(wanted) > sum(node_memory):
        have = ", ".join(f"{memory / GIB:.1f}" for memory in node_memory)
        raise JobError(
            f"workers.prepare.memory and workers.generate.memory ask for {sum(wanted) / GIB:.1f} GiB to start with, up "
            f"to {max(wanted) / GIB:.1f} GiB on one node, and the nodes have {have} GiB; lower them, or set "
            f"{AUTOSCALING_VARIABLE}=1 where an autoscaler brings nodes"
        )


def can_cluster_grow() -> bool:
    """Whether nodes come when they are asked for. Ray does not tell: an autoscaler that only watches looks the same."""
    return os.environ.get(AUTOSCALING_VARIABLE, "") not in ("", "0")


def describe_missing_resources(pool: GpuPoolSection) -> str:
    """What is missing for the first replica; empty where it can start."""
    have = ray.cluster_resources()
    wanted = {"GPU": pool.gpus, "CPU": pool.cpus}
    return ", ".join(f"{n:g} {kind}" for kind, n in wanted.items() if n > have.get(kind, 0.0))


def announce_missing_resources(job: Job, end_event: Event) -> None:
    """Say now and then what a growing cluster has not got yet, until the run has ended."""

    def follow() -> None:
        started = time.monotonic()
        while not end_event.is_set() and (missing := describe_missing_resources(job.workers.generate)):
            waited = f", {time.monotonic() - started:.0f} s so far" if time.monotonic() - started > 1 else ""
            log.write_message(f"the cluster is asked to grow: the first replica waits for {missing}{waited}")
            end_event.wait(MESSAGE_INTERVAL_S)

    Thread(target=follow, name="growing", daemon=True).start()
