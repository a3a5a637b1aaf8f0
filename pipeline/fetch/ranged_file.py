"""An object far away -> a file that can be read anywhere in it, a block at a time.

For who reads little of it and knows where: a TIFF lists its pages in places of its own choosing. Blocks that came are
kept, so that going to and fro costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

BLOCK = 64 << 10


class Ranged(io.RawIOBase):
    """`get(start, end)` brings bytes; the beginning is there already."""

    def __init__(self, beginning: bytes, size: int, get: Callable[[int, int], bytes]):
        self.size, self.get, self.place = size, get, 0
        self.blocks = {at: beginning[at : at + BLOCK] for at in range(0, len(beginning) // BLOCK * BLOCK, BLOCK)}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        start = self.place // BLOCK * BLOCK
        if self.place >= self.size:
            return 0
        if start not in self.blocks:
            self.blocks[start] = self.get(start, min(start + BLOCK, self.size))
        data = self.blocks[start][self.place - start :][: len(memoryview(buffer))]
        memoryview(buffer)[: len(data)] = data
        self.place += len(data)
        return len(data)
