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
    from pipeline.context import RunContext
    from pipeline.output.commit import CommitReceipt
    from pipeline.types import Outcome

LOG_FORMATS = ("json", "text")
CONFIDENTIAL_STAGES = ("answer", "internal")  # whose messages quote the model, or what a row holds
MAX_MESSAGE_LENGTH = 300  # of a row's message
run_labels: dict[str, str] = {}  # of this process: the job and the run that every event belongs to


def is_json_format() -> bool:
    return (os.environ.get("VLBATCH_LOG") or ("json" if "KUBERNETES_SERVICE_HOST" in os.environ else "text")) == "json"


def set_run_labels(context: RunContext) -> None:
    """Whatever this process logs from now on is of this run."""
    run_labels.update(job=context.job.name, run=context.run_id)


def write_event(name: str, *, level: str = "info", **fields: Any) -> None:
    """One JSON line, where these are wanted."""
    if is_json_format():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        write_line(json.dumps({"time": now, "level": level, "event": name, **run_labels, **fields}, ensure_ascii=False))


def write_line(line: str) -> None:
    """In one piece, whichever thread says it; where nobody reads any more, a run goes on all the same."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def get_line_sink() -> Callable[[str], None] | None:
    """Who takes the lines that are meant for people, where no person reads."""
    if (mode := os.environ.get("VLBATCH_LOG", "text")) not in LOG_FORMATS:
        raise JobError(f"VLBATCH_LOG={mode}: set it to json or text, or leave it out")
    return (lambda line: write_event("said", message=line)) if is_json_format() else None


def write_message(message: str) -> None:
    """A line from a thread that has nobody to say it for it."""
    write_event("said", message=message)
    if not is_json_format():
        write_line(message)


def write_exit_reason(message: str, *, level: str = "error") -> None:
    """Why a command ends, in whichever form is wanted."""
    if is_json_format():
        write_event("ended", level=level, message=message)
    else:
        write_message(message)


def write_commit_event(receipt: CommitReceipt) -> None:
    write_event(
        "chunk", chunk=receipt.part_name, won=receipt.committed_first, answered=receipt.answered, failed=receipt.failed
    )


def write_failure_events(outcomes: Iterable[Outcome]) -> None:
    """One event for each row that failed."""
    for _, row in outcomes:
        if isinstance(row, Failure):
            words = "" if row.stage in CONFIDENTIAL_STAGES else row.message[:MAX_MESSAGE_LENGTH]
            write_event("row_failed", level="warning", row=row.id, stage=row.stage, kind=row.kind, message=words)
