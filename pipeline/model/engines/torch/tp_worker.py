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
from pipeline.model.engines.torch.collectives import ERRORS, Ranks
from pipeline.model.engines.torch.model_runner import Task, assemble, load_share, room
from pipeline.model.engines.torch.worker_group import AGAIN, GRACE_S
from pipeline.watchdog import Watchdog

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit()


def follow(link: Connection) -> None:
    task = Task(**link.recv())
    torch.set_num_threads(task.threads)
    try:
        loaded = load_share(task)
    except PipelineError as error:
        link.send((False, str(error)))
        return
    link.send((True, room(task, loaded)))
    port, size = link.recv()
    ranks = Ranks(task.place)
    ranks.join(port, device=loaded.device, limit_s=task.hang_s)
    gallery, forward = assemble(task, loaded, size, ranks)
    serve(link, {"look": gallery.look, "drop": gallery.drop, "read": forward.run}, ranks, Watchdog(task.hang_s))
    ranks.close()


def serve(link: Connection, able: Mapping[str, Callable[..., Any]], ranks: Ranks, watchdog: Watchdog) -> None:
    while (message := link.recv()) is not None:
        do, arguments = message
        before = ranks.calls
        try:
            with watchdog:
                able[do](*arguments)
        except ERRORS as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            link.send((ranks.calls - before, f"{type(error).__name__}: {error}"))
            if not link.poll(GRACE_S) or link.recv() != AGAIN:
                raise  # rank 0 is somewhere else: nobody can go on from here


def main(descriptor: int, parent: int) -> None:
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is rank 0's to handle
    with suppress(EOFError, BrokenPipeError):  # rank 0 is gone
        follow(Connection(descriptor))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and Python would take seconds over it


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
