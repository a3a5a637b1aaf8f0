"""What goes wrong on the way to a server or a disk -> its kind, and how often that kind is worth another attempt.

One table for all who read and write. What is not in it does not pass by itself and is not tried again. A picture is
given up after a minute at most, so that one bad server does not hold a run up; answers that are paid for are held for
about five minutes, long enough for most stores to come back. Waits double and are drawn at random, so that a thousand
workers that met the same busy server do not come back at the same moment.
"""

from __future__ import annotations

import errno
from typing import NamedTuple


class RetryPolicy(NamedTuple):
    max_attempts: int
    first_wait_s: float
    longest_wait_s: float

    def compute_wait_s(self, failures: int, jitter: float) -> float:
        return compute_wait_s(failures, jitter, first_wait_s=self.first_wait_s, longest_wait_s=self.longest_wait_s)


def compute_wait_s(failures: int, jitter: float, *, first_wait_s: float = 0.25, longest_wait_s: float = 8.0) -> float:
    """
    >>> [wait_s(n, 0.5) for n in (1, 2, 3, 9)]
    [0.25, 0.5, 1.0, 8.0]
    """
    return min(longest_wait_s, first_wait_s * 2.0 ** (failures - 1)) * (0.5 + jitter)


MEDIA_POLICIES = {  # what a row looks at; limits.deadline_s ends it all
    "unavailable": RetryPolicy(10, 0.25, 8.0),
    "connection": RetryPolicy(10, 0.25, 8.0),
    "timeout": RetryPolicy(6, 0.25, 8.0),
    "truncated": RetryPolicy(6, 0.25, 8.0),
    "dns": RetryPolicy(6, 0.25, 8.0),
    "credentials": RetryPolicy(4, 1.0, 8.0),
}
OUTPUT_POLICIES = {  # listing, reading and writing it
    "unavailable": RetryPolicy(16, 0.25, 30.0),
    "connection": RetryPolicy(16, 0.25, 30.0),
    "timeout": RetryPolicy(16, 0.25, 30.0),
    "truncated": RetryPolicy(6, 0.25, 8.0),
    "credentials": RetryPolicy(8, 1.0, 30.0),
}
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED_ERRNOS = (
    *(errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EROFS, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTEMPTY),
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
    """Less came than there is."""


def classify_error(error: Exception) -> str:
    """Libraries wrap each other; types, numbers and the names and codes in the chain tell what is the matter."""
    number = getattr(error, "errno", None)
    said = error.strerror if isinstance(error, OSError) and error.filename else error  # without its path
    chain = f"{type(error).__name__} {said} {error.__cause__ or ''}"
    if isinstance(error, Truncated):
        return "truncated"
    if isinstance(error, FileNotFoundError):  # before its path is searched for words
        return "not_found"
    if any(word in chain for word in STALE_CREDENTIALS_WORDS):
        return "credentials"
    if isinstance(error, PermissionError) or any(word in chain for word in ACCESS_DENIED_WORDS):
        return "denied"
    if number in DISK_FULL_ERRNOS:
        return "full"
    if any(word in chain for word in BUSY_SERVER_WORDS):
        return "unavailable"
    if isinstance(error, TimeoutError) or "Timeout" in chain:
        return "timeout"
    if (
        "ValidationError" in chain
        or "Invalid bucket" in chain
        or (number in REFUSED_ERRNOS and "IncompleteBody" not in chain)
    ):
        return "refused"
    return "connection"
