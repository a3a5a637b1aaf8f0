"""Starts `python -m ...` as a fork of a process that has imported its libraries, which takes longer than most tests.

What is started is a process of its own, with the arguments, the environment and the open files that it was given, and a
child of the process that starts it. Only its imports are shared. Tests of a start itself start a process of their own.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any

PROGRAM = """
import runpy, sys
from tests.forked_python import serve_starts
runpy.run_module(serve_starts(int(sys.argv[1]), sys.argv[2:]), run_name="__main__", alter_sys=True)
"""
PR_SET_CHILD_SUBREAPER = 36
MESSAGE_BYTES, MAX_FILES = 1 << 16, 64
FIRST_SPARE_FILE = 200  # above the numbers that files have
MAX_SERVERS = 2  # each holds the libraries in memory
PYTHON = sys.executable
libc = ctypes.CDLL(None)


class ForkServer:
    def __init__(self, modules: Sequence[str], env: Mapping[str, str]):
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *modules]
        with theirs:
            self.process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def start(self, arguments: Sequence[str], cwd: str, files: Mapping[int, int]) -> int:
        """The id of the new process. Files are named by the numbers that they have there."""
        message = json.dumps({"arguments": [*arguments], "cwd": cwd, "files": [*files]}).encode()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # it becomes our child when its parent ends
        try:
            socket.send_fds(self.connection, [message], [*files.values()])
            return int(self.connection.recv(MESSAGE_BYTES))
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        self.connection.close()
        self.process.wait()


servers: dict[tuple[object, ...], ForkServer] = {}
lock = Lock()


class ForkedPopen(subprocess.Popen[Any]):
    """A Popen for commands `python -m ...`. Subclasses name the modules that the process finds imported."""

    modules: tuple[str, ...] = ()

    def _execute_child(self, args: Any, *options: Any) -> None:
        _, _, _, pass_fds, cwd, env, _, _, _, stdin, _, _, stdout, _, stderr, *_ = options
        if [*args[:2]] != [PYTHON, "-m"]:
            super()._execute_child(args, *options)  # type: ignore[misc]
            return
        env = dict(os.environ if env is None else env)
        env.pop("PYTEST_CURRENT_TEST", None)  # it differs from test to test
        key = (self.modules, *sorted(env.items()))
        standard = {number: file if file != -1 else number for number, file in enumerate((stdin, stdout, stderr))}
        with lock:
            if key not in servers:
                close_fork_servers(keep=MAX_SERVERS - 1)
                servers[key] = ForkServer(self.modules, env)
            self.pid = servers[key].start(args[2:], cwd or os.getcwd(), standard | {file: file for file in pass_fds})
        self._child_created = True
        self._close_pipe_fds(*options[9:15])


def close_fork_servers(keep: int = 0) -> None:
    """The oldest first."""
    while len(servers) > keep:
        servers.pop(next(iter(servers))).close()


def serve_starts(server_fd: int, modules: Sequence[str]) -> str:
    """Fork for each message. Returns in the new process, with the name of the module that it runs."""
    for module in modules:
        import_module(module)
    connection = socket.socket(fileno=server_fd)
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MAX_FILES)
        if not message:
            os._exit(0)
        if child := os.fork():
            os.waitpid(child, 0)
            for file in files:
                os.close(file)
            continue
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == parent:  # until it is adopted
            time.sleep(0.001)
        connection.send(str(os.getpid()).encode())
        connection.close()
        start = json.loads(message)
        spare = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FIRST_SPARE_FILE) for file in files]
        for file in files:
            os.close(file)
        for file, number in zip(spare, start["files"], strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(start["cwd"])
        sys.argv = start["arguments"]
        return sys.argv[0]
