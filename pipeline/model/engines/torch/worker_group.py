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
from pipeline.watchdog import HANG_EXIT_CODE

START_TIMEOUT_S = 3600.0  # to read a share of the largest model from a slow disk
FAILURE_GRACE_S = 10.0  # by which ranks that fail at the same place may differ
CLOSE_TIMEOUT_S = 5.0
CONTINUE = "again"


class WorkerGroup:
    def __init__(self, rank_config: Mapping[str, Any], size: int):
        self.connections: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.supervisors: list[Thread] = []
        self.is_started = False  # from here on the end of one is the end of all
        for rank in range(1, size):
            ours, theirs = Pipe()
            self.connections.append(ours)
            # the kernel ties a child to the thread that started it: that thread stays for as long
            self.supervisors.append(
                Thread(target=self.supervise_worker, args=(rank, theirs), name=f"rank {rank}", daemon=True)
            )
            self.supervisors[-1].start()
            with suppress(OSError):  # gone already: `ready` says so
                ours.send({**rank_config, "rank": rank, "size": size})

    def supervise_worker(self, rank: int, worker_connection: Connection) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        with worker_connection:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline.model.engines.torch.tp_worker",
                    str(worker_connection.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[worker_connection.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self.processes.append(child)
        code = child.wait()
        if self.is_started:
            self.end_replica(f"rank {rank} ended ({describe_exit(code)})")

    def wait_until_loaded(self) -> list[Any]:
        """What each has to say when its share is loaded."""
        said = []
        for rank, link in enumerate(self.connections, 1):
            try:
                fine, word = (
                    link.recv() if link.poll(START_TIMEOUT_S) else (False, f"not ready after {START_TIMEOUT_S:.0f} s")
                )
            except (EOFError, OSError):
                self.supervisors[rank - 1].join(CLOSE_TIMEOUT_S)
                fine, word = False, "it ended while it loaded the model; see what it wrote above this"
            if not fine:
                raise PipelineError(f"rank {rank} of the model did not start: {word}")
            said.append(word)
        self.is_started = True
        return said

    def send_rendezvous(self, *rendezvous: Any) -> None:
        """Where, and with how much room."""
        for link in self.connections:
            link.send(rendezvous)

    def send_command(self, command: str, *arguments: tuple[Any, ...]) -> None:
        """One for all, or one for each."""
        try:
            for number, link in enumerate(self.connections):
                link.send((command, arguments[number if len(arguments) > 1 else 0]))
        except OSError:
            self.end_replica("a rank does not listen")

    def confirm_shared_failure(self, call_count: int, error: Exception) -> None:
        """Every rank failed after as many collectives, or the replica ends."""
        for rank, link in enumerate(self.connections, 1):
            try:
                theirs = link.recv()[0] if link.poll(FAILURE_GRACE_S) else None
            except (EOFError, OSError):
                self.end_replica(f"rank {rank} ended")
            if theirs != call_count:
                self.end_replica(f"rank 0 failed and rank {rank} did not: {type(error).__name__}: {error}")
        for link in self.connections:
            link.send(CONTINUE)

    def end_replica(self, reason: str) -> NoReturn:
        os.write(2, f"vlbatch: {reason}; ending the replica\n".encode())
        os._exit(HANG_EXIT_CODE)

    def close(self) -> None:
        self.is_started = False
        for link in self.connections:
            with suppress(OSError):
                link.send(None)
            link.close()
        for thread in self.supervisors:
            thread.join(CLOSE_TIMEOUT_S)
        for child in self.processes:
            child.kill()  # of one that has ended it does nothing
            child.wait()


def describe_exit(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
