"""An object longer than one read -> its other bytes, a range at a time, all of the same object.

Every range says which version it is of, so that an object replaced half way is never read as a mixture.
A range that fails is asked for again alone: a connection cut at seven gigabytes does not cost seven gigabytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.errors import FetchError
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.retry import TransientError, fetch_with_retries

FIRST_READ_BYTES, RANGE_BYTES = 4 << 20, 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """`get(start, end)` raises Passing for what is worth another attempt, Changed where nothing is."""

    size_bytes: int  # of the whole object
    fetch_range: Callable[[int, int], Awaitable[bytes]]
    on_bytes_read: Callable[[int], None] | None = None  # is told how many bytes came

    async def read_range(self, start: int, end: int) -> bytes:
        data = await fetch_with_retries(lambda: self.fetch_range(start, end))
        if self.on_bytes_read:
            self.on_bytes_read(len(data))
        return data


class ObjectChangedError(FetchError):
    """The object was replaced since its first bytes were read: all of it must be read again."""

    def __init__(self, uri: str):
        super().__init__("changed", f"{uri}: was replaced while it was read")


async def download_rest(remote_object: RemoteObject, writer: BlobWriter) -> None:
    """What the sink has not got yet, in order."""
    for start in range(writer.received_bytes, remote_object.size_bytes, RANGE_BYTES):
        writer.write(await remote_object.read_range(start, min(start + RANGE_BYTES, remote_object.size_bytes)))


def require_length(data: bytes, expected_bytes: int, uri: str) -> bytes:
    if len(data) < expected_bytes:
        raise TransientError("truncated", f"{uri}: {len(data):,} bytes arrived of {expected_bytes:,}")
    return data
