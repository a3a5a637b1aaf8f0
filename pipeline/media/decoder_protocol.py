"""Messages between a worker and its decoder's process: JSON, and bytes that follow as they are.

Straight from one buffer into the other: what the standard library's connections copy on the way
costs more than decoding a small picture.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTHS = struct.Struct(">IQ")  # of the message, of what follows it


def send(wire: socket.socket, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
    text = json.dumps(message).encode()
    wire.sendall(LENGTHS.pack(len(text), len(data)) + text)
    wire.sendall(data)


def receive(wire: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """EOFError where the other side is gone."""
    text, rest = LENGTHS.unpack(_exactly(wire, LENGTHS.size))
    message: dict[str, Any] = json.loads(_exactly(wire, text))
    return message, memoryview(_exactly(wire, rest))


def _exactly(wire: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = wire.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
