"""An object far away -> a file that can be read anywhere in it, a block at a time.

For who reads little of it and knows where: a TIFF lists its pages in places of its own choosing. Blocks that came are
kept, so that going to and fro costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 64 << 10


class RangedFile(io.RawIOBase):
    """`get(start, end)` brings bytes; the beginning is there already."""

    def __init__(self, prefix: bytes, size_bytes: int, fetch_range: Callable[[int, int], bytes]):
        self.size_bytes, self.fetch_range, self.position = size_bytes, fetch_range, 0
        self.cached_blocks = {
            at: prefix[at : at + BLOCK_BYTES] for at in range(0, len(prefix) // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES)
        }

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(
            0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size_bytes}[whence]
        )
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
