"""Computes the size of the worker pools from the job and the resources of the cluster.

Ray waits silently for resources that never come. So a job that does not fit a fixed cluster is refused. A cluster that
is declared to have an autoscaler grows because workers wait for nodes, and the run says which resources are missing.
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
from pipeline.manifest.chunks import compute_slice_rows
from pipeline.model.engines.base import get_engine_type
from pipeline.run import log

DRIVERS_VARIABLE = "VLBATCH_DRIVERS"  # set by `submit --shards`: how many drivers share the cluster
AUTOSCALING_VARIABLE = "VLBATCH_AUTOSCALING"  # set on the head node of a cluster with an autoscaler
MESSAGE_INTERVAL_S = 60.0
GIB = 2**30
MIN_CALLS = 3  # of a replica at once: one is answered, the next one waits, the last one is committed
MAX_CALLS = 8  # 2 GiB of prepared chunks


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """A maximum of None means no limit, on a cluster that grows."""

    prepare_max: int | None
    prepare_cpus: float
    generate_max: int | None
    generate_cpus: float


def compute_pool_sizes(
    job: Job, node_resources: Sequence[Mapping[str, float]], *, can_grow: bool = False, drivers: int = 1
) -> PoolSizes:
    """`drivers` share a fixed cluster evenly. On one that grows, the maxima of the job are for each of them."""
    prepare, generate = job.workers.prepare, job.workers.generate
    if can_grow:
        generate_max = generate.max if generate.gpus else generate.max or generate.min
        return PoolSizes(prepare.max, prepare.cpus, generate_max, generate.cpus)
    check_memory(job, [node.get("memory", math.inf) for node in node_resources])
    node_cpus = [node.get("CPU", 0.0) for node in node_resources]
    total_cpus = sum(node_cpus)
    if drivers > 1:  # each claims a CPU for itself
        total_cpus = max(1.0, total_cpus - drivers) / drivers
    min_cpus, largest_worker = (
        prepare.min * prepare.cpus + generate.min * generate.cpus,
        max(prepare.cpus, generate.cpus),
    )
    # On a machine with fewer CPUs, the smallest pools still start: every worker claims less.
    share = min(1.0, total_cpus / (min_cpus or 1.0), max(node_cpus) / (largest_worker or 1.0))
    prepare_cpus, generate_cpus = (max(0.01, int(100 * share * cpus) / 100) for cpus in (prepare.cpus, generate.cpus))
    possible = generate.max or generate.min
    if generate.gpus:
        possible = max(1, count_possible_replicas(node_resources, generate) // drivers)
    generate_max = max(generate.min, min(generate.max or possible, possible))
    free_slots = int((total_cpus - generate_max * generate_cpus + 1e-6) / prepare_cpus)
    return PoolSizes(
        prepare_max=max(prepare.min, min(prepare.max or free_slots, max(free_slots, 1))),
        prepare_cpus=prepare_cpus,
        generate_max=generate_max,
        generate_cpus=generate_cpus,
    )


def count_concurrent_calls(job: Job) -> int:
    """How many tasks a replica answers at once. Small slices, as of videos, take more to fill its slots."""
    slots = get_engine_type(job).count_slots(job)
    return min(MAX_CALLS, MIN_CALLS + (slots - 1) // compute_slice_rows(job))


def count_possible_replicas(node_resources: Sequence[Mapping[str, float]], pool: GpuPoolSection) -> int:
    """How many replicas the GPUs allow. A replica cannot span nodes."""
    label = f"accelerator_type:{pool.accelerator}"
    node_gpus = [node.get("GPU", 0.0) for node in node_resources if pool.accelerator is None or label in node]
    replicas = sum(int(gpus / pool.gpus + 1e-6) for gpus in node_gpus)
    if replicas < pool.min:
        of_type = f" of type {pool.accelerator}" if pool.accelerator else ""
        available = ", ".join(f"{gpus:g}" for gpus in node_gpus if gpus) or "none"
        raise JobError(
            f"workers.generate asks for {pool.min} x {pool.gpus:g} GPUs{of_type}, each time on one node, and the nodes "
            f"have {available}; lower it, set workers.generate.gpus to 0 to run on CPU, or set "
            f"{AUTOSCALING_VARIABLE}=1 if an autoscaler adds nodes"
        )
    return replicas


def check_memory(job: Job, node_memory: Sequence[float]) -> None:
    """Raise a JobError if the smallest pools do not fit. A worker cannot span nodes."""
    requested = [pool.memory or 0 for pool in (job.workers.prepare, job.workers.generate) for _ in range(pool.min)]
    if max(requested) > max(node_memory) or sum(requested) > sum(node_memory):
        available = ", ".join(f"{memory / GIB:.1f}" for memory in node_memory)
        raise JobError(
            f"workers.prepare.memory and workers.generate.memory ask for {sum(requested) / GIB:.1f} GiB to start "
            f"with, up to {max(requested) / GIB:.1f} GiB on one node, and the nodes have {available} GiB; "
            f"lower them, or set {AUTOSCALING_VARIABLE}=1 if an autoscaler adds nodes"
        )


def count_drivers() -> int:
    return int(os.environ.get(DRIVERS_VARIABLE) or 1)


def can_cluster_grow() -> bool:
    """Ray does not tell: an autoscaler that adds no nodes looks the same as one that does."""
    return os.environ.get(AUTOSCALING_VARIABLE, "") not in ("", "0")


def describe_missing_resources(pool: GpuPoolSection) -> str:
    """The resources that the first replica lacks; empty if it can start."""
    available = ray.cluster_resources()
    needed = {"GPU": pool.gpus, "CPU": pool.cpus}
    return ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount > available.get(name, 0.0))


def announce_missing_resources(job: Job, end_event: Event) -> None:
    """Say every minute what a growing cluster still lacks, until it has it or the run ends."""

    def poll() -> None:
        started = time.monotonic()
        while not end_event.is_set() and (missing := describe_missing_resources(job.workers.generate)):
            waited_s = time.monotonic() - started
            so_far = f", {waited_s:.0f} s so far" if waited_s > 1 else ""
            log.write_message(f"the cluster is asked to grow: the first replica waits for {missing}{so_far}")
            end_event.wait(MESSAGE_INTERVAL_S)

    Thread(target=poll, name="growing", daemon=True).start()
