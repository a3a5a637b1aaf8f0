"""A rank that is not the first: it loads its share and does what it is told. `python -m ... FD PARENT`

It decides nothing: which rows, which tokens and when are rank 0's to say, in the same words to all. It ends with
rank 0: by the closed pipe, or by the kernel where it is not listening.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from pipeline.errors import PipelineError
from pipeline.model.engines.torch.collectives import MODEL_ERRORS, Collectives
from pipeline.model.engines.torch.model_runner import RankConfig, build_step_runner, choose_rank_sizes, load_rank_model
from pipeline.model.engines.torch.worker_group import CONTINUE, FAILURE_GRACE_S
from pipeline.watchdog import Watchdog

PR_SET_PDEATHSIG = 1


def exit_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it was gone before we asked
        sys.exit()


def run_worker(connection: Connection) -> None:
    task = RankConfig(**connection.recv())
    torch.set_num_threads(task.threads)
    try:
        loaded = load_rank_model(task)
    except PipelineError as error:
        connection.send((False, str(error)))
        return
    connection.send((True, choose_rank_sizes(task, loaded)))
    port, size = connection.recv()
    ranks = Collectives(task.tp)
    ranks.join_process_group(port, device=loaded.device, timeout_s=task.hang_s)
    gallery, forward = build_step_runner(task, loaded, size, ranks)
    serve_commands(
        connection,
        {"look": gallery.encode_owned_slices, "drop": gallery.drop_features, "read": forward.run_step},
        ranks,
        Watchdog(task.hang_s),
    )
    ranks.close()


def serve_commands(
    connection: Connection, handlers: Mapping[str, Callable[..., Any]], collectives: Collectives, watchdog: Watchdog
) -> None:
    while (message := connection.recv()) is not None:
        do, arguments = message
        before = collectives.call_count
        try:
            with watchdog:
                handlers[do](*arguments)
        except MODEL_ERRORS as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            connection.send((collectives.call_count - before, f"{type(error).__name__}: {error}"))
            if not connection.poll(FAILURE_GRACE_S) or connection.recv() != CONTINUE:
                raise  # rank 0 is somewhere else: nobody can go on from here


def main(connection_fd: int, parent_pid: int) -> None:
    exit_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is rank 0's to handle
    with suppress(EOFError, BrokenPipeError):  # rank 0 is gone
        run_worker(Connection(connection_fd))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and Python would take seconds over it


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
