"""What happens in a run -> one line each: text for people, JSON where a machine reads.

In a Kubernetes pod each event is one JSON object on stderr, with the job, the run and, where there is one, the row;
elsewhere there are only the lines meant for people. VLBATCH_LOG=json or text says otherwise; Ray's workers must see
it too. What a row asked and what a model said is never logged: `errors/` has it, behind the output's own doors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.types import Failure

if TYPE_CHECKING:
    from pipeline.context import Work
    from pipeline.output.commit import Receipt
    from pipeline.types import Outcome

MODES = ("json", "text")
QUIET_STAGES = ("answer", "internal")  # whose messages quote the model, or what a row holds
LONGEST = 300  # of a row's message
about: dict[str, str] = {}  # of this process: the job and the run that every event belongs to


def as_json() -> bool:
    return (os.environ.get("VLBATCH_LOG") or ("json" if "KUBERNETES_SERVICE_HOST" in os.environ else "text")) == "json"


def belong(work: Work) -> None:
    """Whatever this process logs from now on is of this run."""
    about.update(job=work.job.name, run=work.run)


def event(name: str, *, level: str = "info", **fields: Any) -> None:
    """One JSON line, where these are wanted."""
    if as_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        write(json.dumps({"time": now, "level": level, "event": name, **about, **fields}, ensure_ascii=False))


def write(line: str) -> None:
    """In one piece, whichever thread says it; where nobody reads any more, a run goes on all the same."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def taker() -> Callable[[str], None] | None:
    """Who takes the lines that are meant for people, where no person reads."""
    if (mode := os.environ.get("VLBATCH_LOG", "text")) not in MODES:
        raise JobError(f"VLBATCH_LOG={mode}: set it to json or text, or leave it out")
    return (lambda line: event("said", message=line)) if as_json() else None


def tell(message: str) -> None:
    """A line from a thread that has nobody to say it for it."""
    event("said", message=message)
    if not as_json():
        write(message)


def last(message: str, *, level: str = "error") -> None:
    """Why a command ends, in whichever form is wanted."""
    if as_json():
        event("ended", level=level, message=message)
    else:
        tell(message)


def committed(receipt: Receipt) -> None:
    event("chunk", chunk=receipt.key, won=receipt.won, answered=receipt.answered, failed=receipt.failed)


def failures(outcomes: Iterable[Outcome]) -> None:
    """One event for each row that failed."""
    for _, row in outcomes:
        if isinstance(row, Failure):
            words = "" if row.stage in QUIET_STAGES else row.message[:LONGEST]
            event("row_failed", level="warning", row=row.id, stage=row.stage, kind=row.kind, message=words)
