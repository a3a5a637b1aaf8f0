"""Download a large object range by range.

Each range is requested of the version that the first read saw, so an object replaced meanwhile is never read as a
mixture. A range that fails is requested again alone: a connection cut at seven gigabytes does not cost seven gigabytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.errors import FetchError
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.retry import TransientError, fetch_with_retries

FIRST_READ_BYTES, RANGE_BYTES = 4 << 20, 16 << 20


@dataclass(frozen=True, slots=True)
class RemoteObject:
    size_bytes: int
    fetch_range: Callable[[int, int], Awaitable[bytes]]  # (start, end); may raise TransientError, ObjectChangedError
    on_bytes_read: Callable[[int], None] | None = None

    async def read_range(self, start: int, end: int) -> bytes:
        data = await fetch_with_retries(lambda: self.fetch_range(start, end))
        if self.on_bytes_read:
            self.on_bytes_read(len(data))
        return data


class ObjectChangedError(FetchError):
    """The object was replaced after its first bytes were read; all of it must be read again."""

    def __init__(self, uri: str):
        super().__init__("changed", f"{uri}: was replaced while it was being read")


async def download_rest(remote_object: RemoteObject, writer: BlobWriter) -> None:
    for start in range(writer.received_bytes, remote_object.size_bytes, RANGE_BYTES):
        writer.write(await remote_object.read_range(start, min(start + RANGE_BYTES, remote_object.size_bytes)))


def require_length(data: bytes, expected_bytes: int, uri: str) -> bytes:
    if len(data) < expected_bytes:
        raise TransientError("truncated", f"{uri}: {len(data):,} bytes arrived of {expected_bytes:,}")
    return data
