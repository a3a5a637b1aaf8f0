"""Call a function on many items from a few threads: for reads from a store, where time is spent waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

READER_THREADS = 16
WINDOW = 4 * READER_THREADS  # results held at once: an output may have a million parts


def map_in_threads(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """The results in the order of the items."""
    remaining = iter(items)
    with ThreadPoolExecutor(READER_THREADS) as pool:
        while window := list(islice(remaining, WINDOW)):
            yield from pool.map(function, window)
