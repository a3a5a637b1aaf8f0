"""Rank 0's other ranks: processes that are started, told what to do, and never outlive it or each other.

A rank that ends ends the replica: whatever waits for it in a collective would wait for ever. So this process
ends as well, at once, in a way that Ray takes for a failure of the system: it starts the replica anew and
repeats what was under way. A rank that hangs is the watchdog's. Should this process be killed, the
kernel kills the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from threading import Thread
from typing import Any, NoReturn

from pipeline.errors import PipelineError
from pipeline.watchdog import EXIT_CODE

START_S = 3600.0  # to read a share of the largest model from a slow disk
GRACE_S = 10.0  # by which ranks that fail at the same place may differ
CLOSE_S = 5.0
AGAIN = "again"


class Crew:
    def __init__(self, task: Mapping[str, Any], size: int):
        self.links: list[Connection] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.tending: list[Thread] = []
        self.up = False  # from here on the end of one is the end of all
        for rank in range(1, size):
            ours, theirs = Pipe()
            self.links.append(ours)
            # the kernel ties a child to the thread that started it: that thread stays for as long
            self.tending.append(Thread(target=self.tend, args=(rank, theirs), name=f"rank {rank}", daemon=True))
            self.tending[-1].start()
            with suppress(OSError):  # gone already: `ready` says so
                ours.send({**task, "rank": rank, "size": size})

    def tend(self, rank: int, theirs: Connection) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        with theirs:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline.model.engines.torch.tp_worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self.children.append(child)
        code = child.wait()
        if self.up:
            self.end(f"rank {rank} ended ({fate(code)})")

    def ready(self) -> list[Any]:
        """What each has to say when its share is loaded."""
        said = []
        for rank, link in enumerate(self.links, 1):
            try:
                fine, word = link.recv() if link.poll(START_S) else (False, f"not ready after {START_S:.0f} s")
            except (EOFError, OSError):
                self.tending[rank - 1].join(CLOSE_S)
                fine, word = False, "it ended while it loaded the model; see what it wrote above this"
            if not fine:
                raise PipelineError(f"rank {rank} of the model did not start: {word}")
            said.append(word)
        self.up = True
        return said

    def meet(self, *where: Any) -> None:
        """Where, and with how much room."""
        for link in self.links:
            link.send(where)

    def tell(self, do: str, *arguments: tuple[Any, ...]) -> None:
        """One for all, or one for each."""
        try:
            for number, link in enumerate(self.links):
                link.send((do, arguments[number if len(arguments) > 1 else 0]))
        except OSError:
            self.end("a rank does not listen")

    def agree(self, calls: int, error: Exception) -> None:
        """Every rank failed after as many collectives, or the replica ends."""
        for rank, link in enumerate(self.links, 1):
            try:
                theirs = link.recv()[0] if link.poll(GRACE_S) else None
            except (EOFError, OSError):
                self.end(f"rank {rank} ended")
            if theirs != calls:
                self.end(f"rank 0 failed and rank {rank} did not: {type(error).__name__}: {error}")
        for link in self.links:
            link.send(AGAIN)

    def end(self, why: str) -> NoReturn:
        os.write(2, f"vlbatch: {why}; ending the replica\n".encode())
        os._exit(EXIT_CODE)

    def close(self) -> None:
        self.up = False
        for link in self.links:
            with suppress(OSError):
                link.send(None)
            link.close()
        for thread in self.tending:
            thread.join(CLOSE_S)
        for child in self.children:
            child.kill()  # of one that has ended it does nothing
            child.wait()


def fate(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
