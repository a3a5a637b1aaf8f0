"""A remote object as a seekable file that downloads the blocks that are read.

It serves readers that need little and jump about, as TIFF lists its pages in scattered places. Blocks are kept, so
that returning to one costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 64 << 10


class RangedFile(io.RawIOBase):
    def __init__(self, prefix: bytes, size_bytes: int, fetch_range: Callable[[int, int], bytes]):
        self.size_bytes, self.fetch_range, self.position = size_bytes, fetch_range, 0
        whole_blocks_end = len(prefix) // BLOCK_BYTES * BLOCK_BYTES
        self.cached_blocks = {
            start: prefix[start : start + BLOCK_BYTES] for start in range(0, whole_blocks_end, BLOCK_BYTES)
        }

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size_bytes}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
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
