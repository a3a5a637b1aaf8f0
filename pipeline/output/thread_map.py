"""Calls a function on many items from a few threads: for reads from a store, or work that leaves Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

READER_THREADS = 16  # they wait most of the time
ITEMS_PER_THREAD = 4  # whose results are held at once: an output may have a million parts


def map_in_threads(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int = READER_THREADS
) -> Iterator[ResultT]:
    """The results in the order of the items."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while window := list(islice(remaining, ITEMS_PER_THREAD * threads)):
            yield from pool.map(function, window)
