"""The table of retries, and what is sorted into it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from pipeline import retry_policy
from pipeline.retry_policy import Truncated, classify_error

README = Path(__file__).parents[1] / "infra" / "README.md"


def test_the_readme_of_infra_shows_the_table_as_it_is():
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if "| `unavailable` |" in line)
    kinds, _, media, output = (
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines[start : start + 4]
    )
    for row, table in ((media, retry_policy.MEDIA_POLICIES), (output, retry_policy.OUTPUT_POLICIES)):
        said = {kind: int(cell) for kind, cell in zip(kinds[1:], row[1:], strict=True) if cell}
        assert said == {kind: policy.max_attempts for kind, policy in table.items()}
    assert re.search(r"from a quarter of a second \(credentials: one second\) to 8 s, for the\s+output to 30 s", "\n".join(lines))


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
def test_an_error_is_sorted_by_what_can_be_done_about_it(error, kind):
    assert classify_error(error) == kind
