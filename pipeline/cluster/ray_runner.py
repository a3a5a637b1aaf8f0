"""The flow on Ray Data: chunks -> a pool that prepares -> a pool that answers and commits -> receipts.

A chunk is one block from end to end. Preparing is a pool of its own, for Ray would fuse a plain task into the
engine's actor. Several chunks ask one engine at once, so the end of a chunk is no barrier for the next.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from threading import Event, Thread
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from pipeline.cluster import metrics
from pipeline.cluster.isolation import start_ledger
from pipeline.cluster.pools import (
    announce_missing_resources,
    can_cluster_grow,
    compute_pool_sizes,
    count_concurrent_calls,
)
from pipeline.cluster.workers import RECEIPT_COLUMN, Generate, Prepare
from pipeline.context import RunContext
from pipeline.errors import JobError, PipelineError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk, split_file
from pipeline.manifest.files import ManifestFile, read_with_retries
from pipeline.output.commit import CommitReceipt
from pipeline.run.resume import HashedChunk, split_in_process
from pipeline.run.signals import StopSignals

PREPARED_CHUNKS_PER_REPLICA = 2  # chunks that wait at a replica, prepared, beside those it is called with
POLL_INTERVAL_S, WAIT_TIMEOUT_S = 1.0, 10.0  # between two looks at what is under way; for one
READER_THREAD_NAME = (
    "iter_threaded"  # Ray Data's threads that read a dataset; it does not wait for them when it is left
)
CHUNKS_PER_DATASET = 50_000  # chunks in one dataset: each takes 5 KiB of the driver, and Ray longer for all the others
MIN_FILES_FOR_CLUSTER = 8  # from here on cutting files in tasks beats the second that starting a worker costs


@contextmanager
def connect_to_ray(*, show_ray_log: bool = False) -> Iterator[None]:
    """In the cluster that the environment names, or in one started for this run. Never one that happens to run here.

    A caller who is in one already stays in it. `loud`: Ray says what it has to say, its workers too.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not show_ray_log:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it reports every pool as an error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    alone = address == "local"
    if alone:  # a cluster nobody else reaches; unset, Ray would write a token into the home directory
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        # nor a handler in Python, which would end a run that starts or ends without a word, and with 15
        with (
            disable_function(ray._private.utils, "set_sigterm_handler"),
            nullcontext() if show_ray_log else silence_ray_start(),
        ):
            ray.init(
                address=address,
                log_to_driver=show_ray_log,
                logging_level=logging.INFO if show_ray_log else logging.ERROR,
                include_dashboard=False if alone else None,
            )
    except (ConnectionError, ValueError) as error:
        raise JobError(f"RAY_ADDRESS: no Ray cluster at {address}; unset it to run on this machine") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def silence_ray_start() -> Iterator[None]:
    """While Ray starts: no word from native code, and no thread that prints pages whenever a node or worker goes.

    It says there that it was told to be quiet, and starts that thread whatever `log_to_driver` is.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with disable_function(ray._private.worker, "listen_error_messages"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def disable_function(module: Any, function_name: str) -> Iterator[None]:
    """One of Ray's own functions does nothing meanwhile."""
    kept = getattr(module, function_name, None)
    setattr(module, function_name, lambda *_: None)
    try:
        yield
    finally:
        setattr(module, function_name, kept)


def run(
    context: RunContext,
    chunks: Sequence[Chunk],
    signals: StopSignals,
    *,
    on_rows_in_flight: Callable[[dict[str, int]], None] = lambda rows: None,
) -> Iterator[CommitReceipt]:
    """Receipts as they come; `watch` is told what is under way. Asked to stop, it ends with what was begun."""
    before = {*threading.enumerate()}
    ledger, count, ended = start_ledger(), metrics.build_receipt_counter(context, chunks), Event()
    follower = Thread(target=poll_rows_in_flight, args=(ledger, ended, on_rows_in_flight), daemon=True)
    follower.start()
    if can_cluster_grow():
        announce_missing_resources(context.job, ended)
    try:
        with signals.stop_gracefully(ledger.stop_steps.remote) as stopping:
            starts = (first for first in range(0, len(chunks), CHUNKS_PER_DATASET) if not stopping.is_set())
            waves = (chunks[first : first + CHUNKS_PER_DATASET] for first in starts)
            for row in chain.from_iterable(build_dataset(context, wave, ledger).iter_rows() for wave in waves):
                receipt: CommitReceipt | PipelineError | None = pickle.loads(row[RECEIPT_COLUMN])
                if isinstance(receipt, PipelineError):
                    raise receipt
                if receipt:
                    count(receipt)
                    yield receipt
                elif ray.get(ledger.is_idle.remote()):
                    return
    finally:
        ended.set()
        ray.kill(ledger)
        follower.join()  # whoever asked Ray after its end would start it anew
        for thread in {*threading.enumerate()} - before:  # or end this process with exit code 1 and without a word
            if thread.name == READER_THREAD_NAME:
                thread.join(WAIT_TIMEOUT_S)


def poll_rows_in_flight(ledger: Any, end_event: Event, on_rows_in_flight: Callable[[dict[str, int]], None]) -> None:
    while not end_event.wait(POLL_INTERVAL_S):
        try:
            on_rows_in_flight(ray.get(ledger.count_rows_in_flight.remote(), timeout=WAIT_TIMEOUT_S))
        except ray.exceptions.RayError:  # it ends, or starts anew
            continue


def build_dataset(work: RunContext, chunks: Sequence[Chunk], ledger: Any) -> Dataset:
    rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    context = data.context  # this one's own: a caller's other datasets keep theirs
    context.target_max_block_size = 4 * 2**30  # a chunk is never cut
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    at_once = count_concurrent_calls(work.job)
    # a replica with more to do than it takes gets another; it is let go when its input ends, for loading takes minutes
    context.autoscaling_config.actor_pool_util_upscaling_threshold = (at_once + 1) / at_once
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    accelerator = work.job.workers.generate.accelerator
    kind: dict[str, Any] = {"accelerator_type": accelerator} if accelerator else {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = compute_pool_sizes(work.job, nodes, can_grow=can_cluster_grow())
    prepared = data.map_batches(
        Prepare,
        fn_constructor_args=(work, ledger),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=work.job.workers.prepare.min, max_size=sizes.prepare_max),
        num_cpus=sizes.prepare_cpus,
        memory=work.job.workers.prepare.memory,
    )
    return prepared.map_batches(
        Generate,
        fn_constructor_args=(work, ledger),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=work.job.workers.generate.min,
            max_size=sizes.generate_max,
            max_tasks_in_flight_per_actor=at_once + PREPARED_CHUNKS_PER_REPLICA,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
        num_cpus=sizes.generate_cpus,
        num_gpus=work.job.workers.generate.gpus or None,
        memory=work.job.workers.generate.memory,
        **kind,
    )


def split_on_cluster(
    job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
) -> Iterator[HashedChunk]:
    """Files cut by workers, in order; a few files are cut here."""
    if len(manifest_files) < MIN_FILES_FOR_CLUSTER:
        yield from split_in_process(job, manifest_files, schema_prompt)
        return
    task: Any = ray.remote(num_cpus=1)(split_file_in_task)
    at_once = 2 * int(ray.cluster_resources().get("CPU", 1)) + 1
    waiting: deque[Any] = deque()
    for file in [*manifest_files, *[None] * at_once]:  # a window of them, so that their hashes do not pile up
        if file:
            waiting.append(task.remote(job, file, schema_prompt))
        if waiting and (not file or len(waiting) > at_once):
            made: list[HashedChunk] | PipelineError = ray.get(waiting.popleft())
            if isinstance(made, PipelineError):
                raise made
            yield from made


def split_file_in_task(job: Job, file: ManifestFile, schema_prompt: str | None) -> list[HashedChunk] | PipelineError:
    """What is wrong with a file is handed over as a value, as workers do."""
    try:
        return read_with_retries(file, lambda: list(split_file(job, file, schema_prompt)))
    except PipelineError as error:
        return error
