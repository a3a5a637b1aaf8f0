"""What a worker takes from its decoder's process, which a file may have taken over."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.media.decoder_protocol import MAX_TEXT_BYTES, receive_message, send_message


@pytest.fixture
def connections() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_with_its_bytes(connections):
    ours, theirs = connections
    send_message(theirs, {"shape": [1, 2]}, b"pixels")
    message, data = receive_message(ours, max_data_bytes=6, deadline=time.monotonic() + 60)
    assert (message["shape"], bytes(data)) == ([1, 2], b"pixels")


@pytest.mark.parametrize(
    ("text_size", "data_size", "text", "problem"),
    [
        (2, 7, b"{}", "7 bytes"),
        (2, 1 << 60, b"{}", "bytes"),
        (MAX_TEXT_BYTES + 1, 0, b"{}", "bytes"),
        (1, 0, b"{", "Expecting property name"),
        (1, 0, b"\xff", "codec can't decode"),
        (60_000, 0, b"[" * 60_000, "nested too deeply"),
    ],
    ids=["a byte too many", "much data", "much text", "no JSON", "no text", "too deep"],
)
def test_a_message_that_is_too_large_or_none_is_refused(connections, text_size, data_size, text, problem):
    ours, theirs = connections
    theirs.sendall(struct.pack(">IQ", text_size, data_size) + text)
    with pytest.raises(ValueError, match=problem):
        receive_message(ours, max_data_bytes=6, deadline=time.monotonic() + 60)


def test_bytes_that_come_one_by_one_do_not_move_the_deadline(connections):
    ours, theirs = connections
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.01):
            theirs.sendall(b"\0")

    dripping = threading.Thread(target=drip)
    theirs.sendall(struct.pack(">IQ", 1_000_000, 0))
    dripping.start()
    try:
        with pytest.raises(TimeoutError):
            receive_message(ours, deadline=time.monotonic() + 0.1)
    finally:
        is_over.set()
        dripping.join()
