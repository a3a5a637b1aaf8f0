"""Messages between a worker and its decoder's process: JSON, followed by raw bytes and perhaps by an open file.

Bytes go straight from one buffer into the other: the copies that the standard library's connections make cost more than
decoding a small picture.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from io import FileIO
from typing import Any

LENGTH_PREFIX = struct.Struct(">IQ")  # of the message, of the bytes after it
MAX_TEXT_BYTES = 64 << 20  # the times of three million frames
FILE_MARK = b"f"  # a descriptor needs a byte that it travels with


def send_message(
    connection: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"", *, file: FileIO | None = None
) -> None:
    text = json.dumps({**message, "has_file": file is not None}).encode()
    connection.sendall(LENGTH_PREFIX.pack(len(text), len(data)) + text)
    connection.sendall(data)
    if file:
        socket.send_fds(connection, [FILE_MARK], [file.fileno()])


def receive_message(
    connection: socket.socket, *, max_data_bytes: int = sys.maxsize, deadline: float | None = None
) -> tuple[dict[str, Any], memoryview]:
    """EOFError when the other side is gone, ValueError when what it sends is no message of that size."""
    text_size, data_size = LENGTH_PREFIX.unpack(_receive_exactly(connection, LENGTH_PREFIX.size, deadline))
    if text_size > MAX_TEXT_BYTES or data_size > max_data_bytes:
        raise ValueError(f"a message of {text_size:,} and {data_size:,} bytes")
    try:
        message: dict[str, Any] = json.loads(_receive_exactly(connection, text_size, deadline))
    except RecursionError as error:
        raise ValueError("a message that is nested too deeply") from error
    return message, memoryview(_receive_exactly(connection, data_size, deadline))


def receive_file(connection: socket.socket) -> FileIO:
    """The file of a message that has one. It is not buffered, because a video may still be arriving in it."""
    _, (descriptor,), _, _ = socket.recv_fds(connection, len(FILE_MARK), 1)
    file = FileIO(descriptor)
    file.name = "media"  # PyAV takes no number
    return file


def _receive_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
