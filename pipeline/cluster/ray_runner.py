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
from pipeline.cluster.isolation import open_ledger
from pipeline.cluster.pools import calls, cluster_grows, pools, tell_while_short
from pipeline.cluster.workers import RECEIPT, Generate, Prepare
from pipeline.context import Work
from pipeline.errors import JobError, PipelineError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk, cut
from pipeline.manifest.files import File, reading
from pipeline.output.commit import Receipt
from pipeline.run.resume import Cut, cut_here
from pipeline.run.signals import Signals

AHEAD = 2  # chunks that wait at a replica, prepared, beside those it is called with
LOOK_S, PATIENCE_S = 1.0, 10.0  # between two looks at what is under way; for one
READER = "iter_threaded"  # Ray Data's threads that read a dataset; it does not wait for them when it is left
WAVE = 50_000  # chunks in one dataset: each takes 5 KiB of the driver, and Ray longer for all the others
MANY_FILES = 8  # from here on cutting files in tasks beats the second that starting a worker costs


@contextmanager
def joined(*, loud: bool = False) -> Iterator[None]:
    """In the cluster that the environment names, or in one started for this run. Never one that happens to run here.

    A caller who is in one already stays in it. `loud`: Ray says what it has to say, its workers too.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not loud:
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
        with silenced(ray._private.utils, "set_sigterm_handler"), nullcontext() if loud else hushed():
            ray.init(
                address=address,
                log_to_driver=loud,
                logging_level=logging.INFO if loud else logging.ERROR,
                include_dashboard=False if alone else None,
            )
    except (ConnectionError, ValueError) as error:
        raise JobError(f"RAY_ADDRESS: no Ray cluster at {address}; unset it to run on this machine") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def hushed() -> Iterator[None]:
    """While Ray starts: no word from native code, and no thread that prints pages whenever a node or worker goes.

    It says there that it was told to be quiet, and starts that thread whatever `log_to_driver` is.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with silenced(ray._private.worker, "listen_error_messages"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def silenced(module: Any, function: str) -> Iterator[None]:
    """One of Ray's own functions does nothing meanwhile."""
    kept = getattr(module, function, None)
    setattr(module, function, lambda *_: None)
    try:
        yield
    finally:
        setattr(module, function, kept)


def run(
    work: Work,
    chunks: Sequence[Chunk],
    signals: Signals,
    *,
    watch: Callable[[dict[str, int]], None] = lambda rows: None,
) -> Iterator[Receipt]:
    """Receipts as they come; `watch` is told what is under way. Asked to stop, it ends with what was begun."""
    before = {*threading.enumerate()}
    ledger, count, ended = open_ledger(), metrics.counter_of(work, chunks), Event()
    follower = Thread(target=follow, args=(ledger, ended, watch), daemon=True)
    follower.start()
    if cluster_grows():
        tell_while_short(work.job, ended)
    try:
        with signals.grace(ledger.stop.remote) as stopping:
            starts = (first for first in range(0, len(chunks), WAVE) if not stopping.is_set())
            waves = (chunks[first : first + WAVE] for first in starts)
            for row in chain.from_iterable(receipts(work, wave, ledger).iter_rows() for wave in waves):
                receipt: Receipt | PipelineError | None = pickle.loads(row[RECEIPT])
                if isinstance(receipt, PipelineError):
                    raise receipt
                if receipt:
                    count(receipt)
                    yield receipt
                elif ray.get(ledger.idle.remote()):
                    return
    finally:
        ended.set()
        ray.kill(ledger)
        follower.join()  # whoever asked Ray after its end would start it anew
        for thread in {*threading.enumerate()} - before:  # or end this process with exit code 1 and without a word
            if thread.name == READER:
                thread.join(PATIENCE_S)


def follow(ledger: Any, ended: Event, watch: Callable[[dict[str, int]], None]) -> None:
    while not ended.wait(LOOK_S):
        try:
            watch(ray.get(ledger.under_way.remote(), timeout=PATIENCE_S))
        except ray.exceptions.RayError:  # it ends, or starts anew
            continue


def receipts(work: Work, chunks: Sequence[Chunk], ledger: Any) -> Dataset:
    rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    context = data.context  # this one's own: a caller's other datasets keep theirs
    context.target_max_block_size = 4 * 2**30  # a chunk is never cut
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    at_once = calls(work.job)
    # a replica with more to do than it takes gets another; it is let go when its input ends, for loading takes minutes
    context.autoscaling_config.actor_pool_util_upscaling_threshold = (at_once + 1) / at_once
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    accelerator = work.job.workers.generate.accelerator
    kind: dict[str, Any] = {"accelerator_type": accelerator} if accelerator else {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = pools(work.job, nodes, grows=cluster_grows())
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
            max_tasks_in_flight_per_actor=at_once + AHEAD,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
        num_cpus=sizes.generate_cpus,
        num_gpus=work.job.workers.generate.gpus or None,
        memory=work.job.workers.generate.memory,
        **kind,
    )


def cut_there(job: Job, found: Sequence[File], user: str | None) -> Iterator[Cut]:
    """Files cut by workers, in order; a few files are cut here."""
    if len(found) < MANY_FILES:
        yield from cut_here(job, found, user)
        return
    task: Any = ray.remote(num_cpus=1)(cut_whole)
    at_once = 2 * int(ray.cluster_resources().get("CPU", 1)) + 1
    waiting: deque[Any] = deque()
    for file in [*found, *[None] * at_once]:  # a window of them, so that their hashes do not pile up
        if file:
            waiting.append(task.remote(job, file, user))
        if waiting and (not file or len(waiting) > at_once):
            made: list[Cut] | PipelineError = ray.get(waiting.popleft())
            if isinstance(made, PipelineError):
                raise made
            yield from made


def cut_whole(job: Job, file: File, user: str | None) -> list[Cut] | PipelineError:
    """What is wrong with a file is handed over as a value, as workers do."""
    try:
        return reading(file, lambda: list(cut(job, file, user)))
    except PipelineError as error:
        return error
