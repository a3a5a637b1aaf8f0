"""The decoder's process: takes files and sizes, returns resized pixels.

Native decoders crash, hang and exhaust memory on broken files, and may run a stranger's code; here they may. This
process knows no model, no job and no credentials, and starts in a sandbox (sandbox.py). Its memory is limited, a
machine short of memory kills it first, and the kernel's alarm kills it if its owner is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ItemError
from pipeline.media.decoder_protocol import receive_file, receive_message, send_message
from pipeline.media.kinds.base import DecodeLimits
from pipeline.registry import import_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenFile:
    """The file that is open, and the messages about it."""

    def __init__(self) -> None:
        self.file: Any = None

    def open(self, message: dict[str, Any], source: bytes | FileIO) -> dict[str, Any]:
        if self.file:
            self.file.close()
            self.file = None
        limits = DecodeLimits(**message["limits"])
        self.file = import_object(message["kind"])(source, limits, claimed_kind=message["claimed_kind"])
        return {"probe": asdict(self.file.probe)}

    def list_ranges(self, message: dict[str, Any]) -> dict[str, Any]:
        list_file_ranges = getattr(self.file, "ranges", None)
        return {"ranges": [list_file_ranges(batch) if list_file_ranges else None for batch in message["batches"]]}

    def read(self, message: dict[str, Any]) -> NDArray[np.uint8]:
        region = tuple(message["region"]) if message["region"] else None
        pixels: NDArray[np.uint8] = self.file.read(message["indices"], tuple(message["size"]), region)
        return pixels


def serve_requests(connection: socket.socket, missing_protection: Sequence[str]) -> None:
    open_file = OpenFile()
    send_message(connection, {"missing_protection": missing_protection})
    while True:
        try:
            message, data = receive_message(connection)
            source = receive_file(connection) if message["has_file"] else bytes(data)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, message["deadline_s"])
        pixels = None
        try:
            if message["do"] == "open":
                reply = open_file.open(message, source)
            elif message["do"] == "ranges":
                reply = open_file.list_ranges(message)
            else:
                pixels, reply = open_file.read(message), {}
        except ItemError as error:
            reply = {"error": [error.kind, error.message]}
        except MemoryError:
            reply = {"error": ["memory", "needs more memory than its limits allow"]}
        except Exception as error:  # noqa: BLE001 - whatever a library raises is about this file
            reply = {"error": ["undecodable", describe_library_error(error)]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_message(connection, reply, b"" if pixels is None else pixels.data.cast("B"))


def describe_library_error(error: Exception) -> str:
    """Without what follows a quote or a colon: it may be a piece of the file, which is not for a dead letter.

    >>> describe_library_error(SyntaxError("broken PNG file (chunk b'abcd')"))
    'SyntaxError: broken PNG file (chunk ...'
    """
    start, *rest = re.split(r"b?['\"]|(?<=:)", str(error), maxsplit=1)
    return f"{type(error).__name__}: {start[:500]}{'...' if rest else ''}"


def limit_memory(memory_bytes: int) -> None:
    """Limit what is allocated from here on, for good."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(
    socket_fd: int, memory_bytes: int, threads: int, missing_protection: Sequence[str], *, reads_pixels: bool
) -> None:
    """Without `reads_pixels`, files are only opened, which needs no torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    warnings.simplefilter("ignore")
    tempfile.tempdir = "/tmp"  # libraries ask for its name as they are imported; none can be written here
    sys.modules["cuda.bindings"] = None  # type: ignore[assignment] # CUDA's torch does without: it would run a compiler
    if reads_pixels:
        import torch

        torch.set_num_threads(threads)
    limit_memory(memory_bytes)
    with open(os.devnull, "w") as nowhere:  # libraries complain about broken files
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    serve_requests(socket.socket(fileno=socket_fd), missing_protection)
