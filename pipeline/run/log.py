"""Logs the events of a run to stderr: as text for people, or as JSON lines for machines.

In a Kubernetes pod every event is one JSON object with the job, the run and, if there is one, the row. Elsewhere only
the lines for people are written. VLBATCH_LOG=json or text overrides this, on Ray's workers too. Questions and answers
are never logged: dead letters hold them, under the access rules of the output.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.retry_policy import WAIT_LOGGER

if TYPE_CHECKING:
    from pipeline.context import RunContext
    from pipeline.output.commit import CommitReceipt

Say = Callable[[str], None]  # takes a line for people

LOG_FORMATS = ("json", "text")
CONFIDENTIAL_STAGES = ("answer", "internal")  # their messages quote the model or the row
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
MAX_MESSAGE_LENGTH = 300  # of a failed row
run_labels: dict[str, str] = {}  # the job and the run of this process, added to every event


def is_json_format() -> bool:
    return (os.environ.get("VLBATCH_LOG") or ("json" if "KUBERNETES_SERVICE_HOST" in os.environ else "text")) == "json"


def set_run_labels(context: RunContext) -> None:
    run_labels.update(job=context.job.name, run=context.run_id)


def write_event(name: str, *, level: str = "info", **fields: Any) -> None:
    """Write a JSON line, if the format is JSON."""
    if is_json_format():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        write_line(json.dumps({"time": now, "level": level, "event": name, **run_labels, **fields}, ensure_ascii=False))


def write_line(line: str) -> None:
    """Write a line in one piece, from any thread. A closed stderr does not stop the run."""
    try:
        sys.stderr.write(f"{escape_control_characters(line)}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def escape_control_characters(text: str) -> str:
    """Names of files and rows are other people's text, and a terminal obeys such characters.

    >>> escape_control_characters("a\\x1b[2Jb\\rc\\n")
    'a\\\\x1b[2Jb\\\\rc\\n'
    """
    return CONTROL_CHARACTER.sub(lambda match: repr(match[0])[1:-1], text)


def get_line_sink() -> Say | None:
    """Where lines for people go instead of the terminal, if the format is JSON."""
    if (mode := os.environ.get("VLBATCH_LOG", "text")) not in LOG_FORMATS:
        raise JobError(f"VLBATCH_LOG={mode}: set it to json or text, or leave it out")
    return (lambda line: write_event("said", message=line)) if is_json_format() else None


def write_message(message: str) -> None:
    """Write a line for people from a thread that has no Progress to print it."""
    write_event("said", message=message)
    if not is_json_format():
        write_line(message)


@contextmanager
def show_storage_waits(say: Say) -> Iterator[None]:
    """Show the lines of operations that wait for storage. Those of many threads that say the same are one."""
    handler = WaitHandler(say)
    WAIT_LOGGER.addHandler(handler)
    WAIT_LOGGER.propagate = False
    try:
        yield
    finally:
        WAIT_LOGGER.removeHandler(handler)
        WAIT_LOGGER.propagate = True


class WaitHandler(logging.Handler):
    def __init__(self, say: Say):
        super().__init__()
        self.say, self.last_line = say, ""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line != self.last_line:
            self.last_line = line
            self.say(line)


def write_exit_reason(message: str, *, level: str = "error") -> None:
    """Write why a command ends."""
    if is_json_format():
        write_event("ended", level=level, message=message)
    else:
        write_message(message)


def write_commit_event(receipt: CommitReceipt) -> None:
    """Write a line for a chunk and one for each of its failed rows. The driver does so, whose log outlives workers."""
    for row in receipt.failed_rows:
        message = "" if row.stage in CONFIDENTIAL_STAGES else row.message[:MAX_MESSAGE_LENGTH]
        write_event(
            "row_failed",
            level="warning",
            row=row.id,
            stage=row.stage,
            kind=row.kind,
            message=message,
            chunk=receipt.part_name,
        )
    write_event(
        "chunk", chunk=receipt.part_name, won=receipt.committed_first, answered=receipt.answered, failed=receipt.failed
    )
