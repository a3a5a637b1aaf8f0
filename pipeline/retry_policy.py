"""Decides whether a failed operation on a server or a disk runs again, and how long to wait first.

The tables hold one policy for each kind of error; a kind without a policy does not go away by itself and is not
retried. Reading a picture gives up after about a minute, so that one bad server does not hold up the run. Writing
answers, which are already paid for, retries for about five minutes: long enough for most stores to come back. Waits
double and carry jitter, so that a thousand workers do not return to a busy server at the same moment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from itertools import count
from typing import NamedTuple, TypeVar

ResultT = TypeVar("ResultT")
ErrorT = TypeVar("ErrorT", bound=Exception)


class RetryPolicy(NamedTuple):
    max_attempts: float = math.inf
    first_wait_s: float = 0.25
    longest_wait_s: float = 8.0

    def compute_wait_s(self, failures: int, jitter: float) -> float:
        """The wait after this many failures; `jitter` lies between 0 and 1.

        >>> [RetryPolicy().compute_wait_s(failures, 0.5) for failures in (1, 2, 3, 9)]
        [0.25, 0.5, 1.0, 8.0]
        """
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1)) * (0.5 + jitter)


MEDIA_POLICIES = {  # for the media of a row; limits.deadline_s bounds all attempts together
    "unavailable": RetryPolicy(10, 0.25, 8.0),
    "connection": RetryPolicy(10, 0.25, 8.0),
    "timeout": RetryPolicy(6, 0.25, 8.0),
    "truncated": RetryPolicy(6, 0.25, 8.0),
    "dns": RetryPolicy(6, 0.25, 8.0),
    "credentials": RetryPolicy(4, 1.0, 8.0),
}
OUTPUT_POLICIES = {  # for the output folder and for manifest files
    "unavailable": RetryPolicy(16, 0.25, 30.0),
    "connection": RetryPolicy(16, 0.25, 30.0),
    "timeout": RetryPolicy(16, 0.25, 30.0),
    "truncated": RetryPolicy(6, 0.25, 8.0),
    "credentials": RetryPolicy(8, 1.0, 30.0),
}
FIRST_CONTACT_ATTEMPTS = 5  # before anything has started: a wrong endpoint is found out soon
QUIET_WAIT_S = 5.0  # shorter waits are not worth a line
WAIT_LOGGER = logging.getLogger("pipeline.storage")  # without a handler, Python writes its lines to stderr
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED_ERRNOS = (
    *(errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EEXIST, errno.EROFS, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTEMPTY),
)
ACCESS_DENIED_WORDS = (
    "Forbidden",
    "AuthorizationFailure",
    "AuthorizationPermission",
    "403 Client Error",
    "Credential",
    "GoogleAuth",
)
STALE_CREDENTIALS_WORDS = (
    "(400) when calling the Head",  # S3's response to HEAD has no body, which would say that a token has expired
    "Expired",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "TokenRefresh",
    "AuthenticationF",
)
BUSY_SERVER_WORDS = (
    "SlowDown",
    "Throttl",
    "InternalError",
    "ServiceUnavailable",
    "TooManyRequests",
    "ServerBusy",
    "reduce your",
)


class Truncated(OSError):
    """Fewer bytes arrived than the object has."""


def run_with_retries(
    operation: Callable[[], ResultT],
    error_types: type[ErrorT] | tuple[type[ErrorT], ...],
    on_failure: Callable[[ErrorT, int], float],
) -> ResultT:
    """Repeat an operation until it succeeds.

    After each failure, `on_failure(error, failures)` returns the seconds to wait, or raises to give up.
    """
    for failures in count(1):
        try:
            return operation()
        except error_types as error:
            wait_s = on_failure(error, failures)
        time.sleep(wait_s)
    raise AssertionError("count() does not end")


async def run_with_retries_async(
    operation: Callable[[], Awaitable[ResultT]],
    error_types: type[ErrorT] | tuple[type[ErrorT], ...],
    on_failure: Callable[[ErrorT, int], float],
) -> ResultT:
    """`run_with_retries` for coroutines."""
    for failures in count(1):
        try:
            return await operation()
        except error_types as error:
            wait_s = on_failure(error, failures)
        await asyncio.sleep(wait_s)
    raise AssertionError("count() does not end")


def decide_wait_s(
    policies: Mapping[str, RetryPolicy], kind: str, failures: int, *, retry_after_s: float = 0.0
) -> float | None:
    """Seconds to wait before the next attempt, at least what the server asked for; None: give up."""
    policy = policies.get(kind)
    if policy is None or failures >= policy.max_attempts:
        return None
    return max(policy.compute_wait_s(failures, random.random()), retry_after_s)


class StorageRetries:
    """Decides about one operation on a store after each of its failures, and says so when it takes long."""

    def __init__(self, target: str, max_attempts: float = math.inf):
        self.target, self.max_attempts, self.started = target, max_attempts, time.monotonic()

    def decide_wait_s(self, kind: str, error: Exception, failures: int) -> float | None:
        """Seconds to wait before the next attempt; None: give up."""
        policy = OUTPUT_POLICIES.get(kind, RetryPolicy(1))
        max_attempts = min(policy.max_attempts, self.max_attempts)
        if failures >= max_attempts:
            return None
        wait_s = policy.compute_wait_s(failures, random.random())
        if time.monotonic() - self.started + wait_s >= QUIET_WAIT_S:
            attempt = f"attempt {failures + 1} of {max_attempts:g} in {wait_s:.0f} s"
            WAIT_LOGGER.warning(f"waiting for {self.target}: {kind} ({describe_reason(error)}), {attempt}")
        return wait_s


def describe_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error.__cause__ or error).__name__


def parse_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from now that the header `Retry-After` asks for: it holds a number or a date."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def classify_error(error: Exception) -> str:
    """Name the kind of error by its type, its errno, and the words and codes in its chain of causes.

    Libraries wrap each other's errors, so the type alone does not tell.
    """
    error_number = getattr(error, "errno", None)
    # A path in the message may hold any of the words.
    message = error.strerror if isinstance(error, OSError) and error.filename else error
    chain = f"{type(error).__name__} {message} {error.__cause__ or ''}"
    if isinstance(error, Truncated):
        return "truncated"
    if isinstance(error, FileNotFoundError):  # its message may be a path
        return "not_found"
    if any(word in chain for word in STALE_CREDENTIALS_WORDS):
        return "credentials"
    if isinstance(error, PermissionError) or any(word in chain for word in ACCESS_DENIED_WORDS):
        return "denied"
    if error_number in DISK_FULL_ERRNOS:
        return "full"
    if any(word in chain for word in BUSY_SERVER_WORDS):
        return "unavailable"
    if isinstance(error, TimeoutError) or "Timeout" in chain:
        return "timeout"
    if "ValidationError" in chain or "Invalid bucket" in chain:
        return "refused"
    if error_number in REFUSED_ERRNOS and "IncompleteBody" not in chain:
        return "refused"
    return "connection"
