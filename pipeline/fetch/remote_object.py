"""Read remote objects: again while an error may pass, and large ones range by range.

Each range is requested of the version that the first read saw, so an object replaced meanwhile is never read as a
mixture. A range that fails is requested again alone: a connection cut at seven gigabytes does not cost seven gigabytes.
The caller's deadline bounds all attempts together.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline import retry_policy
from pipeline.errors import FetchError
from pipeline.fetch.blob import BlobWriter

ResultT = TypeVar("ResultT")
FIRST_READ_BYTES, RANGE_BYTES = 4 << 20, 16 << 20
BLOCK_BYTES = 64 << 10


class TransientError(FetchError):
    """A failure that may pass: a time-out, a busy server, a cut connection."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float = 0.0):
        super().__init__(kind, message)
        self.retry_after_s = retry_after_s  # what the server asked for


class ObjectChangedError(FetchError):
    """The object was replaced after its first bytes were read; all of it must be read again."""

    def __init__(self, uri: str):
        super().__init__("changed", f"{uri}: was replaced while it was being read")


async def fetch_with_retries(operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
    return await retry_policy.run_with_retries_async(operation, TransientError, _decide_wait_s)


def _decide_wait_s(error: TransientError, failures: int) -> float:
    policies, retry_after_s = retry_policy.MEDIA_POLICIES, error.retry_after_s
    wait_s = retry_policy.decide_wait_s(policies, error.kind, failures, retry_after_s=retry_after_s)
    if wait_s is None:
        raise FetchError(error.kind, f"{error.message}; gave up after {failures} attempts") from error
    return wait_s


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


async def download_rest(remote_object: RemoteObject, writer: BlobWriter) -> None:
    for start in range(writer.received_bytes, remote_object.size_bytes, RANGE_BYTES):
        writer.write(await remote_object.read_range(start, min(start + RANGE_BYTES, remote_object.size_bytes)))


def require_length(data: bytes, expected_bytes: int, uri: str) -> bytes:
    if len(data) < expected_bytes:
        raise TransientError("truncated", f"{uri}: {len(data):,} bytes arrived of {expected_bytes:,}")
    return data


class RangedFile(io.RawIOBase):
    """A seekable file that downloads the blocks that are read, and keeps them.

    It serves readers that need little and jump about: TIFF lists its pages in scattered places.
    """

    def __init__(self, prefix: bytes, size_bytes: int, fetch_range: Callable[[int, int], bytes]):
        self.size_bytes, self.fetch_range, self.position = size_bytes, fetch_range, 0
        starts = range(0, len(prefix) // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES)
        self.cached_blocks = {start: prefix[start : start + BLOCK_BYTES] for start in starts}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size_bytes}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        start = self.position // BLOCK_BYTES * BLOCK_BYTES
        if self.position >= self.size_bytes:
            return 0
        if start not in self.cached_blocks:
            self.cached_blocks[start] = self.fetch_range(start, min(start + BLOCK_BYTES, self.size_bytes))
        data = self.cached_blocks[start][self.position - start :][: len(memoryview(buffer))]
        memoryview(buffer)[: len(data)] = data
        self.position += len(data)
        return len(data)
