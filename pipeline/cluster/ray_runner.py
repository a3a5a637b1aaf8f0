"""Runs chunks on Ray: one actor pool prepares them, a second one answers and commits them.

Both pools live as long as the run, so that a replica loads its model once. A replica answers several chunks at once, so
that it does not idle at the end of each.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from threading import Event
from typing import Any

import ray

from pipeline.cluster import metrics
from pipeline.cluster.chunk_flow import ChunkFlow, PoolOptions
from pipeline.cluster.isolation import start_ledger
from pipeline.cluster.output_folder import check_nodes_share_output
from pipeline.cluster.pools import (
    announce_missing_resources,
    can_cluster_grow,
    compute_pool_sizes,
    count_concurrent_calls,
    count_drivers,
)
from pipeline.cluster.ray_job import describe_submission
from pipeline.cluster.ray_session import connect_to_ray
from pipeline.cluster.task_size import WAITING_TASKS
from pipeline.cluster.workers import GenerateWorker, PrepareWorker
from pipeline.context import RunContext
from pipeline.errors import PipelineError
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import compute_slice_rows, split_file
from pipeline.manifest.files import ManifestFile, read_with_retries
from pipeline.output.commit import CommitReceipt
from pipeline.run.lease import Lease
from pipeline.run.resume import HashedChunk, split_in_process
from pipeline.run.runner import ShowWork, ignore_work
from pipeline.run.signals import StopSignals

MIN_FILES_FOR_CLUSTER = 8  # fewer manifest files are split sooner than a worker starts


class RayRunner:
    def connect(self, *, show_log: bool) -> AbstractContextManager[None]:
        return connect_to_ray(show_log=show_log)

    def describe_submission(self) -> Mapping[str, str]:
        return describe_submission(os.environ)

    def split_manifest(
        self, job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
    ) -> Iterator[HashedChunk]:
        if len(manifest_files) < MIN_FILES_FOR_CLUSTER:
            return split_in_process(job, manifest_files, schema_prompt)
        return split_on_cluster(job, manifest_files, schema_prompt)

    def run_chunks(
        self,
        context: RunContext,
        chunks: ChunkTable,
        signals: StopSignals,
        show_work: ShowWork = ignore_work,
    ) -> Generator[CommitReceipt, None, None]:
        check_nodes_share_output(context)
        count_receipt = metrics.build_receipt_counter(context, chunks)
        with (
            open_ledger(context.job) as ledger,
            signals.stop_gracefully(ledger.stop_steps.remote) as stopping,
            closing(ChunkFlow(chunks, compute_slice_rows(context.job), *build_pool_options(context, ledger))) as flow,
        ):
            for receipt in flow.run(stopping, show_work):
                count_receipt(receipt)
                yield receipt

    def export_lease_age(self, context: RunContext, lease: Lease) -> None:
        metrics.export_lease_age(context, lease)


@contextmanager
def open_ledger(job: Job) -> Iterator[Any]:
    """The crash ledger of one run. Meanwhile, a growing cluster says which resources it lacks."""
    ledger, end_event = start_ledger(), Event()
    if can_cluster_grow():
        announce_missing_resources(job, end_event)
    try:
        yield ledger
    finally:
        end_event.set()
        ray.kill(ledger)


def build_pool_options(context: RunContext, ledger: Any) -> tuple[PoolOptions, PoolOptions]:
    job = context.job
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = compute_pool_sizes(job, nodes, can_grow=can_cluster_grow(), drivers=count_drivers())
    accelerator = job.workers.generate.accelerator
    node_type = {"accelerator_type": accelerator} if accelerator else {}
    prepare = PoolOptions(
        PrepareWorker,
        (context, ledger),
        {"num_cpus": sizes.prepare_cpus, "memory": job.workers.prepare.memory},
        min_size=job.workers.prepare.min,
        max_size=sizes.prepare_max,
        tasks_at_once=1,
        tasks_waiting=1,
    )
    generate = PoolOptions(
        GenerateWorker,
        (context, ledger),
        {
            "num_cpus": sizes.generate_cpus,
            "num_gpus": job.workers.generate.gpus,
            "memory": job.workers.generate.memory,
            **node_type,
        },
        min_size=job.workers.generate.min,
        max_size=sizes.generate_max,
        tasks_at_once=count_concurrent_calls(job),
        tasks_waiting=WAITING_TASKS,
    )
    return prepare, generate


def split_on_cluster(
    job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
) -> Iterator[HashedChunk]:
    """Split files in tasks. A window of tasks bounds the hashes that wait; results come in the order of the files."""
    task: Any = ray.remote(num_cpus=1)(split_file_in_task)
    max_tasks = 2 * int(ray.cluster_resources().get("CPU", 1)) + 1
    tasks: deque[Any] = deque()
    for file in manifest_files:
        tasks.append(task.remote(job, file, schema_prompt))
        if len(tasks) > max_tasks:
            yield from get_split_file(tasks.popleft())
    for pending_task in tasks:
        yield from get_split_file(pending_task)


def split_file_in_task(job: Job, file: ManifestFile, schema_prompt: str | None) -> list[HashedChunk] | PipelineError:
    """Errors are returned because Ray would bury their messages in tracebacks."""
    try:
        return read_with_retries(file, lambda: list(split_file(job, file, schema_prompt)))
    except PipelineError as error:
        return error


def get_split_file(task: Any) -> list[HashedChunk]:
    chunks: list[HashedChunk] | PipelineError = ray.get(task)
    if isinstance(chunks, PipelineError):
        raise chunks
    return chunks
