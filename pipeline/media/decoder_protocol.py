"""Messages between a worker and its decoder's process: JSON, followed by raw bytes and perhaps by an open file.

Bytes go straight from one buffer into the other: the copies that the standard library's connections make cost more than
decoding a small picture.
"""

from __future__ import annotations

import json
import socket
import struct
from io import FileIO
from typing import Any

LENGTH_PREFIX = struct.Struct(">IQ")  # of the message, of the bytes after it
FILE_MARK = b"f"  # a descriptor needs a byte that it travels with


def send_message(
    connection: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"", *, file: FileIO | None = None
) -> None:
    text = json.dumps({**message, "has_file": file is not None}).encode()
    connection.sendall(LENGTH_PREFIX.pack(len(text), len(data)) + text)
    connection.sendall(data)
    if file:
        socket.send_fds(connection, [FILE_MARK], [file.fileno()])


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """EOFError when the other side is gone."""
    text_size, data_size = LENGTH_PREFIX.unpack(_receive_exactly(connection, LENGTH_PREFIX.size))
    message: dict[str, Any] = json.loads(_receive_exactly(connection, text_size))
    return message, memoryview(_receive_exactly(connection, data_size))


def receive_file(connection: socket.socket) -> FileIO:
    """The file of a message that has one. It is not buffered, because a video may still be arriving in it."""
    _, (descriptor,), _, _ = socket.recv_fds(connection, len(FILE_MARK), 1)
    file = FileIO(descriptor)
    file.name = "media"  # PyAV takes no number
    return file


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
