"""Repeats a read of media while its error may pass, as `retry_policy.MEDIA_POLICIES` says.

A reader marks such an error by raising `TransientError`. The caller's deadline bounds all attempts together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeline import retry_policy
from pipeline.errors import FetchError

ResultT = TypeVar("ResultT")


class TransientError(FetchError):
    """A failure that may pass: a time-out, a busy server, a cut connection."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float = 0.0):
        super().__init__(kind, message)
        self.retry_after_s = retry_after_s  # what the server asked for


async def fetch_with_retries(operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
    return await retry_policy.run_with_retries_async(operation, TransientError, _decide_wait_s)


def _decide_wait_s(error: TransientError, failures: int) -> float:
    wait_s = retry_policy.decide_wait_s(
        retry_policy.MEDIA_POLICIES, error.kind, failures, retry_after_s=error.retry_after_s
    )
    if wait_s is None:
        raise FetchError(error.kind, f"{error.message}; gave up after {failures} attempts") from error
    return wait_s
