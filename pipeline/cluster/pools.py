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
from pipeline.job.spec import GpuPool, Job
from pipeline.manifest.chunks import chunk_rows
from pipeline.run import log

GROWS = "VLBATCH_AUTOSCALING"  # set on the head of a cluster that has an autoscaler
SAY_EVERY_S = 60.0
GIB = 2**30
FEWEST, MOST = 3, 8  # calls of a replica: one being answered, one behind it, one committing; prepared they weigh 2 GiB
SLOTS, ROWS = ("slots", "max_num_seqs", "concurrency"), 64  # what engines call them; as many an engine may have


@dataclass(frozen=True, slots=True)
class Pools:
    """Most workers: None where the cluster grows and the job names no end."""

    prepare_max: int | None
    prepare_cpus: float
    generate_max: int | None
    generate_cpus: float


def pools(job: Job, nodes: Sequence[Mapping[str, float]], *, grows: bool = False) -> Pools:
    """`nodes` are the resources of each."""
    prepare, generate = job.workers.prepare, job.workers.generate
    if grows:
        generate_max = generate.max if generate.gpus else generate.max or generate.min
        return Pools(prepare.max, prepare.cpus, generate_max, generate.cpus)
    refuse_memory(job, [node.get("memory", math.inf) for node in nodes])
    each = [node.get("CPU", 0.0) for node in nodes]
    wanted, widest = prepare.min * prepare.cpus + generate.min * generate.cpus, max(prepare.cpus, generate.cpus)
    share = min(1.0, sum(each) / (wanted or 1.0), max(each) / (widest or 1.0))
    prepare_cpus, generate_cpus = (max(0.01, int(100 * share * cpus) / 100) for cpus in (prepare.cpus, generate.cpus))
    places = places_on(nodes, generate) if generate.gpus else generate.max or generate.min
    generate_max = max(generate.min, min(generate.max or places, places))
    room = int((sum(each) - generate_max * generate_cpus + 1e-6) / prepare_cpus)
    return Pools(
        prepare_max=max(prepare.min, min(prepare.max or room, max(room, 1))),
        prepare_cpus=prepare_cpus,
        generate_max=generate_max,
        generate_cpus=generate_cpus,
    )


def calls(job: Job) -> int:
    """Chunks that a replica is called with at once: where they are of few rows, videos, it takes more to fill it."""
    engine = job.engine
    slots = next((said for name in SLOTS if (said := getattr(engine, name, None))), ROWS)
    return min(MOST, FEWEST + (slots - 1) // chunk_rows(job))


def places_on(nodes: Sequence[Mapping[str, float]], pool: GpuPool) -> int:
    """How many replicas there are GPUs for: each is on one node."""
    kind = f"accelerator_type:{pool.accelerator}"
    there = [node.get("GPU", 0.0) for node in nodes if pool.accelerator is None or kind in node]
    places = sum(int(gpus / pool.gpus + 1e-6) for gpus in there)
    if places < pool.min:
        of = f" of {pool.accelerator}" if pool.accelerator else ""
        have = ", ".join(f"{gpus:g}" for gpus in there if gpus) or "none"
        raise JobError(
            f"workers.generate asks for {pool.min} x {pool.gpus:g} GPUs{of}, each time on one node, and the nodes "
            f"have {have}; lower it, set workers.generate.gpus to 0 to run on CPU, or {GROWS}=1 where an "
            "autoscaler brings them"
        )
    return places


def refuse_memory(job: Job, nodes: Sequence[float]) -> None:
    """Where the least number of workers has no room: each is on one node."""
    wanted = [pool.memory or 0 for pool in (job.workers.prepare, job.workers.generate) for _ in range(pool.min)]
    if max(wanted) > max(nodes) or sum(wanted) > sum(nodes):
        have = ", ".join(f"{memory / GIB:.1f}" for memory in nodes)
        raise JobError(
            f"workers.prepare.memory and workers.generate.memory ask for {sum(wanted) / GIB:.1f} GiB to start with, up "
            f"to {max(wanted) / GIB:.1f} GiB on one node, and the nodes have {have} GiB; lower them, or set "
            f"{GROWS}=1 where an autoscaler brings nodes"
        )


def cluster_grows() -> bool:
    """Whether nodes come when they are asked for. Ray does not tell: an autoscaler that only watches looks the same."""
    return os.environ.get(GROWS, "") not in ("", "0")


def short(pool: GpuPool) -> str:
    """What is missing for the first replica; empty where it can start."""
    have = ray.cluster_resources()
    wanted = {"GPU": pool.gpus, "CPU": pool.cpus}
    return ", ".join(f"{n:g} {kind}" for kind, n in wanted.items() if n > have.get(kind, 0.0))


def tell_while_short(job: Job, ended: Event) -> None:
    """Say now and then what a growing cluster has not got yet, until the run has ended."""

    def follow() -> None:
        started = time.monotonic()
        while not ended.is_set() and (missing := short(job.workers.generate)):
            waited = f", {time.monotonic() - started:.0f} s so far" if time.monotonic() - started > 1 else ""
            log.tell(f"the cluster is asked to grow: the first replica waits for {missing}{waited}")
            ended.wait(SAY_EVERY_S)

    Thread(target=follow, name="growing", daemon=True).start()
