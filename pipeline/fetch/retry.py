"""An attempt -> its result, after as many attempts as are worth it.

Only what may pass by itself is tried again, as often as the table in pipeline/retry_policy.py says: the reader tells by
raising `Passing`. The caller's deadline ends it all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

from pipeline import retry_policy
from pipeline.errors import FetchError

T = TypeVar("T")


class TransientError(FetchError):
    """A failure that may be gone in a moment: a time-out, a busy server, a cut connection."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float = 0.0):
        super().__init__(kind, message)
        self.retry_after_s = retry_after_s  # what the server asked for


async def run_with_retries(operation: Callable[[], Awaitable[T]]) -> T:
    for number in count(1):
        try:
            return await operation()
        except TransientError as passing:
            policy = retry_policy.MEDIA_POLICIES[passing.kind]
            if number >= policy.max_attempts:
                raise FetchError(passing.kind, f"{passing.message}; gave up after {number} attempts") from passing
            await asyncio.sleep(max(policy.compute_wait_s(number, random.random()), passing.retry_after_s))
    raise AssertionError
