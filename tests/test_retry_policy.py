"""How errors are classified, and when an operation runs again."""

from __future__ import annotations

import asyncio
import errno
import re
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline import retry_policy
from pipeline.retry_policy import (
    RetryPolicy,
    StorageRetries,
    Truncated,
    classify_error,
    decide_wait_s,
    parse_retry_after,
    run_with_retries,
    run_with_retries_async,
)

README = Path(__file__).parents[1] / "infra" / "README.md"


def test_infra_readme_shows_the_attempts_of_every_policy():
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if "| `unavailable` |" in line)
    kinds, _, media, output = (
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[start : start + 4]
    )
    for row, table in ((media, retry_policy.MEDIA_POLICIES), (output, retry_policy.OUTPUT_POLICIES)):
        documented = {kind: int(cell) for kind, cell in zip(kinds[1:], row[1:], strict=True) if cell}
        assert documented == {kind: policy.max_attempts for kind, policy in table.items()}
    waits = r"from a quarter of a second \(credentials: one second\) to 8 s, for the\s+output to 30 s"
    assert re.search(waits, "\n".join(lines))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EBUSY, "Please reduce your request rate."), "unavailable"),
        (OSError(errno.EREMOTEIO, "An error occurred (InternalError)"), "unavailable"),
        (OSError(errno.EIO, "ConditionalRequestConflict"), "connection"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "connection"),
        (TimeoutError("RequestTimeout"), "timeout"),
        (OSError(errno.EINVAL, "(IncompleteBody)"), "connection"),
        (OSError(errno.EINVAL, "(InvalidArgument)"), "refused"),
        (Truncated("a is cut short"), "truncated"),
        (PermissionError("An error occurred (ExpiredToken)"), "credentials"),
        (PermissionError("An error occurred (AccessDenied)"), "denied"),
        (FileNotFoundError("The specified bucket does not exist"), "not_found"),
        (FileNotFoundError("labels/Expired/Credentials/a.parquet"), "not_found"),
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (OSError(errno.ENOSPC, "No space left on device", "/labels/Expired/a.parquet"), "full"),
        (PermissionError(errno.EACCES, "Permission denied", "/labels/Expired/a.parquet"), "denied"),
        (OSError(errno.EROFS, "Read-only file system", "/labels/Credentials/a.parquet"), "refused"),
    ],
)
def test_classify_error(error, kind):
    assert classify_error(error) == kind


def run_async(operation, error_types, on_failure):
    async def attempt():
        return operation()

    return asyncio.run(run_with_retries_async(attempt, error_types, on_failure))


@pytest.mark.parametrize("run", [run_with_retries, run_async])
def test_an_operation_runs_again_until_it_succeeds(run):
    errors, failures_seen = [OSError("first"), OSError("second")], []

    def operation():
        if errors:
            raise errors.pop(0)
        return "done"

    def on_failure(error, failures):
        failures_seen.append((str(error), failures))
        return 0.0

    assert run(operation, OSError, on_failure) == "done"
    assert failures_seen == [("first", 1), ("second", 2)]


@pytest.mark.parametrize("run", [run_with_retries, run_async])
def test_on_failure_raises_to_give_up_and_other_errors_pass_through(run):
    def give_up(error, failures):
        raise RuntimeError("gave up") from error

    def fail():
        raise ConnectionResetError

    with pytest.raises(RuntimeError, match="gave up"):
        run(fail, (OSError, ValueError), give_up)
    with pytest.raises(ConnectionResetError):
        run(fail, ValueError, give_up)


def test_waits_double_up_to_the_longest_and_heed_retry_after():
    policies = {"timeout": RetryPolicy(max_attempts=4, first_wait_s=1.0, longest_wait_s=2.0)}
    for failures, wait_s in ((1, 1.0), (2, 2.0), (3, 2.0)):
        assert wait_s / 2 <= decide_wait_s(policies, "timeout", failures) <= wait_s * 1.5
    assert decide_wait_s(policies, "timeout", 1, retry_after_s=9.0) == 9.0
    assert decide_wait_s(policies, "timeout", 4) is None
    assert decide_wait_s(policies, "denied", 1) is None


@pytest.fixture
def now(monkeypatch):
    """The clock of the retries. It stands still until a test sets it."""
    time_s = [100.0]
    monkeypatch.setattr(retry_policy.time, "monotonic", lambda: time_s[0])
    return time_s


def test_a_wait_for_storage_speaks_after_five_seconds_and_then_at_each_attempt(now, caplog):
    retries, error = StorageRetries("s3://acme/out"), OSError(5, "SlowDown")
    for failures in range(1, 4):
        assert retries.decide_wait_s("unavailable", error, failures) < 5
    assert caplog.messages == []
    for failures in range(4, 7):
        now[0] += 5.0
        assert retries.decide_wait_s("unavailable", error, failures)
    starts = [message.rpartition(" in ")[0] for message in caplog.messages]
    assert starts == [f"waiting for s3://acme/out: unavailable (SlowDown), attempt {n} of 16" for n in (5, 6, 7)]


def test_a_first_contact_gives_up_after_a_few_attempts():
    retries = StorageRetries("s3://acme/out", retry_policy.FIRST_CONTACT_ATTEMPTS)
    waits = [retries.decide_wait_s("connection", OSError("refused"), failures) for failures in range(1, 6)]
    assert waits[-1] is None
    assert 2 < sum(waits[:-1]) < 7
    assert StorageRetries("s3://acme/out").decide_wait_s("denied", OSError("403"), 1) is None


def test_retry_after_holds_seconds_or_a_date():
    assert parse_retry_after({"Retry-After": "1.5"}) == 1.5
    assert 50 < parse_retry_after({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert parse_retry_after({"Retry-After": "soon"}) == parse_retry_after({}) == 0.0
