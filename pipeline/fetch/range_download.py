"""An object longer than one read -> its other bytes, a range at a time, all of the same object.

Every range says which version it is of, so that an object replaced half way is never read as a mixture.
A range that fails is asked for again alone: a connection cut at seven gigabytes does not cost seven gigabytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.errors import FetchError
from pipeline.fetch.blob import Sink
from pipeline.fetch.retry import Passing, persist

FIRST, PART = 4 << 20, 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Rest:
    """`get(start, end)` raises Passing for what is worth another attempt, Changed where nothing is."""

    size: int  # of the whole object
    get: Callable[[int, int], Awaitable[bytes]]
    count: Callable[[int], None] | None = None  # is told how many bytes came

    async def read(self, start: int, end: int) -> bytes:
        data = await persist(lambda: self.get(start, end))
        if self.count:
            self.count(len(data))
        return data


class Changed(FetchError):
    """The object was replaced since its first bytes were read: all of it must be read again."""

    def __init__(self, uri: str):
        super().__init__("changed", f"{uri}: was replaced while it was read")


async def download(rest: Rest, sink: Sink) -> None:
    """What the sink has not got yet, in order."""
    for start in range(sink.size, rest.size, PART):
        sink.feed(await rest.read(start, min(start + PART, rest.size)))


def complete(data: bytes, wanted: int, uri: str) -> bytes:
    if len(data) < wanted:
        raise Passing("truncated", f"{uri}: {len(data):,} bytes arrived of {wanted:,}")
    return data
