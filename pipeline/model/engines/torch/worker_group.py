"""The processes of ranks 1, 2, ...: rank 0 starts them, sends them commands, and ends with them.

When one rank ends, the whole replica ends: the others would wait for it in a collective for ever. So rank 0 exits at
once with a code that Ray takes for a system failure; Ray starts the replica again and repeats its work. A rank that
hangs is ended by its watchdog. If rank 0 is killed, the kernel kills the other ranks. Where memory was the reason, rank
0 is told before it exits, so that the next process can begin with lower limits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from threading import Lock, Thread
from typing import Any, NoReturn

import torch

from pipeline.errors import ExitCode, PipelineError
from pipeline.model.engines.torch.shared_pixels import SharedPixels

WORKER_MODULE = "pipeline.model.engines.torch.tp_worker"
START_TIMEOUT_S = 3600.0  # to read a share of the largest model from a slow disk
FAILURE_GRACE_S = 10.0  # how far apart in time ranks may be when they fail at the same place
CLOSE_TIMEOUT_S = 5.0
CONTINUE = "continue"
OUT_OF_MEMORY_CODE = 71  # with which a rank exits that alone ran out of memory


class WorkerGroup:
    def __init__(self, rank_configs: Sequence[Any]):  # of ranks 1, 2, ...
        self.connections: list[Connection] = []
        self.shared_pixels = [SharedPixels() for _ in rank_configs]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.supervisors: list[Thread] = []
        self.is_started = False  # once started, the end of one rank ends the replica
        self.on_out_of_memory: Callable[[], None] = lambda: None  # called before it ends for that reason
        self.report_lock = Lock()
        for rank, rank_config in enumerate(rank_configs, 1):
            connection, worker_connection = Pipe()
            self.connections.append(connection)
            # the kernel kills a worker when the thread that started it ends, so each has a thread that waits for it
            supervisor = Thread(
                target=self.supervise_worker, args=(rank, worker_connection), name=f"rank {rank}", daemon=True
            )
            self.supervisors.append(supervisor)
            supervisor.start()
            with suppress(OSError):  # it ended already: wait_until_loaded reports it
                connection.send(rank_config)

    def supervise_worker(self, rank: int, worker_connection: Connection) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        with worker_connection:
            fds = worker_connection.fileno(), self.shared_pixels[rank - 1].fd
            command = [sys.executable, "-m", WORKER_MODULE, *map(str, fds), str(os.getpid())]
            process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment)
        self.processes.append(process)
        code = process.wait()
        if self.is_started:
            if code == OUT_OF_MEMORY_CODE:
                self.report_out_of_memory()
            way = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            self.end_replica(f"rank {rank} ended ({'out of memory' if code == OUT_OF_MEMORY_CODE else way})")

    def wait_until_loaded(self) -> list[Any]:
        """Wait until every rank has loaded its share. Returns the EngineSizes that each has memory for."""
        sizes = []
        for rank, connection in enumerate(self.connections, 1):
            is_loaded, answer = False, f"not ready after {START_TIMEOUT_S:.0f} s"
            try:
                if connection.poll(START_TIMEOUT_S):
                    is_loaded, answer = connection.recv()
            except (EOFError, OSError):
                self.supervisors[rank - 1].join(CLOSE_TIMEOUT_S)
                answer = "it ended while it loaded the model; see its output above"
            if not is_loaded:
                raise PipelineError(f"rank {rank} of the model did not start: {answer}")
            sizes.append(answer)
        self.is_started = True
        return sizes

    def send_rendezvous(self, port: int, sizes: Any) -> None:
        """Tell every rank where to join the process group, and the EngineSizes that all use."""
        for connection in self.connections:
            connection.send((port, sizes))

    def send_command(self, command: str, *arguments: tuple[Any, ...]) -> None:
        """Send one command to all ranks, with the same arguments or with one tuple of arguments for each."""
        try:
            for index, connection in enumerate(self.connections):
                connection.send((command, arguments[index if len(arguments) > 1 else 0]))
        except OSError:
            self.supervisors[index].join(CLOSE_TIMEOUT_S)  # it ends the replica if the rank has ended, and says how
            self.end_replica("a rank does not listen")

    def confirm_shared_failure(self, call_count: int, error: Exception) -> None:
        """End the replica unless every rank failed in this command, after the same number of collective calls."""
        for rank, connection in enumerate(self.connections, 1):
            try:
                worker_failure = connection.recv() if connection.poll(FAILURE_GRACE_S) else (None, "did not", False)
            except (EOFError, OSError):
                self.supervisors[rank - 1].join(CLOSE_TIMEOUT_S)  # see above
                self.end_replica(f"rank {rank} ended")
            worker_call_count, worker_error, is_out_of_memory = worker_failure
            if worker_call_count != call_count:
                if is_out_of_memory or isinstance(error, torch.OutOfMemoryError):
                    self.report_out_of_memory()
                self.end_replica(f"rank 0 failed and rank {rank} {worker_error}: {type(error).__name__}: {error}")
        for connection in self.connections:
            connection.send(CONTINUE)

    def report_out_of_memory(self) -> None:
        """Once, although two threads may find out. Each ends this process next, so the second waits for the first."""
        with self.report_lock:
            report, self.on_out_of_memory = self.on_out_of_memory, lambda: None
            report()

    def end_replica(self, reason: str) -> NoReturn:
        os.write(2, f"vlbatch: {reason}; ending the replica\n".encode())
        os._exit(ExitCode.HANG)

    def send_end(self) -> None:
        self.is_started = False
        for connection in self.connections:
            with suppress(OSError):
                connection.send(None)
            connection.close()

    def close(self) -> None:
        for supervisor in self.supervisors:
            supervisor.join(CLOSE_TIMEOUT_S)
        for process in self.processes:
            process.kill()  # does nothing to a process that has ended
            process.wait()
        for shared_pixels in self.shared_pixels:
            shared_pixels.close()
