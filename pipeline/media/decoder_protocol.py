"""Messages between a worker and its decoder's process: JSON, and bytes that follow as they are.

Straight from one buffer into the other: what the standard library's connections copy on the way
costs more than decoding a small picture.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH_PREFIX = struct.Struct(">IQ")  # of the message, of what follows it


def send_message(connection: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
    text = json.dumps(message).encode()
    connection.sendall(LENGTH_PREFIX.pack(len(text), len(data)) + text)
    connection.sendall(data)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """EOFError where the other side is gone."""
    text, rest = LENGTH_PREFIX.unpack(_receive_exactly(connection, LENGTH_PREFIX.size))
    message: dict[str, Any] = json.loads(_receive_exactly(connection, text))
    return message, memoryview(_receive_exactly(connection, rest))


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
