"""An attempt -> its result, after as many attempts as are worth it.

Only what may pass by itself is tried again: the reader says so by raising `Passing`. Waits double
from a quarter of a second and are drawn at random, so that a thousand workers that met the same busy
server do not come back at the same moment. The caller's deadline ends it all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

from pipeline.errors import FetchError

T = TypeVar("T")
ATTEMPTS = 6
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0


class Passing(FetchError):
    """A failure that may be gone in a moment: a time-out, a busy server, a cut connection."""

    def __init__(self, kind: str, message: str, *, after_s: float = 0.0, attempts: int = ATTEMPTS):
        super().__init__(kind, message)
        self.after_s = after_s  # what the server asked for
        self.attempts = attempts  # that are worth it


async def persist(attempt: Callable[[], Awaitable[T]]) -> T:
    for number in count(1):
        try:
            return await attempt()
        except Passing as trouble:
            if number >= trouble.attempts:
                raise FetchError(trouble.kind, f"{trouble.message}; gave up after {number} attempts") from trouble
            await asyncio.sleep(max(wait_s(number, random.random()), trouble.after_s))
    raise AssertionError


def wait_s(failures: int, chance: float) -> float:
    """
    >>> [wait_s(n, 0.5) for n in (1, 2, 3, 9)]
    [0.25, 0.5, 1.0, 8.0]
    """
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 1)) * (0.5 + chance)
