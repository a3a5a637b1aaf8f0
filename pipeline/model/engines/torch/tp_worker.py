"""The process of a rank other than 0: loads its share of the model and obeys commands. `python -m ...`

Rank 0 decides everything and sends the same commands to all ranks. A worker ends with rank 0: it sees the closed pipe,
or the kernel kills it where it does not listen.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from pipeline.errors import PipelineError
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.oom_backoff import MODEL_ERRORS
from pipeline.model.engines.torch.replica import RankConfig, build_step_runner, choose_sizes, load_rank_model
from pipeline.model.engines.torch.shared_pixels import SharedPixels, receive_pixels
from pipeline.model.engines.torch.worker_group import CONTINUE, FAILURE_GRACE_S, OUT_OF_MEMORY_CODE
from pipeline.watchdog import Watchdog

PR_SET_PDEATHSIG = 1


def exit_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent ended before the call
        sys.exit()


def run_worker(connection: Connection, shared_pixels: SharedPixels) -> None:
    rank_config: RankConfig = connection.recv()
    torch.set_num_threads(rank_config.threads)
    try:
        loaded = load_rank_model(rank_config)
    except PipelineError as error:
        connection.send((False, str(error)))
        return
    connection.send((True, choose_sizes(rank_config, loaded)))
    port, sizes = connection.recv()
    collectives = Collectives(rank_config.tp)
    collectives.join_process_group(collectives.open_store(port), device=loaded.device, timeout_s=rank_config.hang_s)
    vision_cache, step_runner = build_step_runner(rank_config, loaded, sizes, collectives)
    handlers: dict[str, Callable[..., Any]] = {
        "encode_slices": lambda assigned: vision_cache.encode_owned_slices(
            receive_pixels(assigned, rank_config.rank, shared_pixels)
        ),
        "drop_features": vision_cache.drop_features,
        "run_step": step_runner.run_step,
    }
    serve_commands(connection, handlers, collectives, Watchdog(rank_config.hang_s))
    if step_runner.graphs:
        step_runner.graphs.release()
    collectives.close()


def serve_commands(
    connection: Connection, handlers: Mapping[str, Callable[..., Any]], collectives: Collectives, watchdog: Watchdog
) -> None:
    while (message := connection.recv()) is not None:
        command, arguments = message
        calls_before = collectives.call_count
        try:
            with watchdog:
                handlers[command](*arguments)
        except MODEL_ERRORS as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
            message = f"elsewhere, by {type(error).__name__}: {error}"
            connection.send((collectives.call_count - calls_before, message, is_out_of_memory))
            if not connection.poll(FAILURE_GRACE_S) or connection.recv() != CONTINUE:
                raise  # rank 0 did not fail at the same place: the ranks cannot go on together


def main(connection_fd: int, pixels_fd: int, parent_pid: int) -> None:
    exit_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 handles ctrl-C
    code = 0
    try:
        run_worker(Connection(connection_fd), SharedPixels(pixels_fd))
    except (EOFError, BrokenPipeError):
        pass  # rank 0 has ended
    except torch.OutOfMemoryError:
        traceback.print_exc()
        code = OUT_OF_MEMORY_CODE
    sys.stderr.flush()
    os._exit(code)  # there is nothing to clean up, and the interpreter would take seconds for it


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
