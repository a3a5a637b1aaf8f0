"""Runs chunks on Ray Data: one actor pool prepares them, a second one answers and commits them.

A chunk is one block of a dataset from end to end. Preparing needs a pool of its own because Ray would fuse a plain
task into the engine's actor. A replica answers several chunks at once, so that it does not idle at the end of each.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from threading import Event, Thread
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.cluster import metrics
from pipeline.cluster.isolation import describe_notice, start_ledger
from pipeline.cluster.output_folder import check_nodes_share_output
from pipeline.cluster.pools import (
    announce_missing_resources,
    can_cluster_grow,
    compute_pool_sizes,
    count_concurrent_calls,
    count_drivers,
)
from pipeline.cluster.ray_job import describe_submission
from pipeline.cluster.ray_session import connect_to_ray, join_dataset_readers
from pipeline.cluster.workers import RECEIPT_COLUMN, GenerateWorker, PrepareWorker
from pipeline.context import RunContext
from pipeline.errors import PipelineError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk, split_file
from pipeline.manifest.files import ManifestFile, read_with_retries
from pipeline.output.commit import CommitReceipt
from pipeline.run import log
from pipeline.run.lease import Lease
from pipeline.run.resume import HashedChunk, split_in_process
from pipeline.run.runner import RowsInFlightCallback, ignore_rows_in_flight
from pipeline.run.signals import StopSignals

CHUNKS_PER_DATASET = 50_000  # each costs the driver 5 KiB, and Ray slows down as they add up
PREPARED_CHUNKS_PER_REPLICA = 2  # prepared chunks that wait at a replica beside those that it answers
MAX_BLOCK_BYTES = 4 * 2**30  # larger than any chunk, so that Ray never splits one
MIN_FILES_FOR_CLUSTER = 8  # fewer manifest files are split sooner than a worker starts
POLL_INTERVAL_S, POLL_TIMEOUT_S = 1.0, 10.0  # of the rows in flight


class RayRunner:
    def __init__(self) -> None:
        self.parked_actors: Mapping[str, int] = {}  # by stage: how many the last pass over the chunks has parked

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
        chunks: Sequence[Chunk],
        signals: StopSignals,
        on_rows_in_flight: RowsInFlightCallback = ignore_rows_in_flight,
    ) -> Generator[CommitReceipt, None, None]:
        check_nodes_share_output(context)
        count_receipt = metrics.build_receipt_counter(context, chunks)
        with (
            join_dataset_readers(),
            open_ledger(context, on_rows_in_flight) as ledger,
            signals.stop_gracefully(ledger.stop_steps.remote) as stopping,
        ):
            starts = (start for start in range(0, len(chunks), CHUNKS_PER_DATASET) if not stopping.is_set())
            datasets = (
                build_dataset(context, chunks[start : start + CHUNKS_PER_DATASET], ledger, self.parked_actors)
                for start in starts
            )
            for row in chain.from_iterable(dataset.iter_rows() for dataset in datasets):
                receipt: CommitReceipt | PipelineError | None = pickle.loads(row[RECEIPT_COLUMN])
                if isinstance(receipt, PipelineError):
                    raise receipt
                if receipt:
                    count_receipt(receipt)
                    yield receipt
                elif ray.get(ledger.is_idle.remote()):  # all that is left are chunks that nobody works on
                    self.parked_actors = ray.get(ledger.count_parked_actors.remote())
                    return

    def export_lease_age(self, context: RunContext, lease: Lease) -> None:
        metrics.export_lease_age(context, lease)


@contextmanager
def open_ledger(context: RunContext, on_rows_in_flight: RowsInFlightCallback) -> Iterator[Any]:
    """The crash ledger of one run, polled for the rows in flight and for actors that it has parked."""
    workers, end_event = context.job.workers, Event()
    ledger = start_ledger({"prepare": workers.prepare.min, "generate": workers.generate.min})
    poller = Thread(target=poll_ledger, args=(ledger, end_event, on_rows_in_flight), daemon=True)
    poller.start()
    if can_cluster_grow():
        announce_missing_resources(context.job, end_event)
    try:
        yield ledger
    finally:
        end_event.set()
        ray.kill(ledger)
        poller.join()  # a call after Ray's shutdown would start Ray again


def poll_ledger(ledger: Any, end_event: Event, on_rows_in_flight: RowsInFlightCallback) -> None:
    while not end_event.wait(POLL_INTERVAL_S):
        try:
            on_rows_in_flight(ray.get(ledger.count_rows_in_flight.remote(), timeout=POLL_TIMEOUT_S))
            for notice in ray.get(ledger.take_notices.remote(), timeout=POLL_TIMEOUT_S):
                log.write_message(f"a worker is set aside, and the others go on: {describe_notice(notice)}")
        except ray.exceptions.RayError:  # the ledger ends or restarts
            continue


def build_dataset(
    context: RunContext, chunks: Sequence[Chunk], ledger: Any, parked_actors: Mapping[str, int]
) -> ray.data.Dataset:
    """`parked_actors` are those of an earlier pass: so many more start at once, and those that fail take no chunk."""
    job = context.job
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = compute_pool_sizes(job, nodes, can_grow=can_cluster_grow(), drivers=count_drivers())
    concurrent_calls = count_concurrent_calls(job)
    accelerator = job.workers.generate.accelerator
    node_type: dict[str, Any] = {"accelerator_type": accelerator} if accelerator else {}

    rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    configure_dataset(dataset.context, concurrent_calls)
    worker_arguments = (context, ledger, not parked_actors)
    prepared = dataset.map_batches(
        PrepareWorker,
        fn_constructor_args=worker_arguments,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=raise_min_size(job.workers.prepare.min, sizes.prepare_max, parked_actors.get("prepare", 0)),
            max_size=sizes.prepare_max,
        ),
        num_cpus=sizes.prepare_cpus,
        memory=job.workers.prepare.memory,
    )
    return prepared.map_batches(
        GenerateWorker,
        fn_constructor_args=worker_arguments,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=raise_min_size(job.workers.generate.min, sizes.generate_max, parked_actors.get("generate", 0)),
            max_size=sizes.generate_max,
            max_tasks_in_flight_per_actor=concurrent_calls + PREPARED_CHUNKS_PER_REPLICA,
            max_concurrent_calls_per_actor=concurrent_calls,
            enable_true_multi_threading=True,
        ),
        num_cpus=sizes.generate_cpus,
        num_gpus=job.workers.generate.gpus or None,
        memory=job.workers.generate.memory,
        **node_type,
    )


def raise_min_size(min_size: int, max_size: int | None, parked_actors: int) -> int:
    """Enough actors that one of them is not where an earlier pass has parked one."""
    raised = max(min_size, parked_actors + 1)
    return raised if max_size is None else min(raised, max_size)


def configure_dataset(data_context: DataContext, concurrent_calls: int) -> None:
    """Set options of one dataset; other datasets of the caller keep theirs."""
    data_context.target_max_block_size = MAX_BLOCK_BYTES
    data_context.enable_progress_bars = False
    data_context.print_on_execution_start = False
    # A pool grows when its replicas have more to do than they take, and shrinks only when its input has ended, because
    # loading a model takes minutes.
    autoscaling = data_context.autoscaling_config
    autoscaling.actor_pool_util_upscaling_threshold = (concurrent_calls + 1) / concurrent_calls
    autoscaling.actor_pool_util_downscaling_threshold = -1.0


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
