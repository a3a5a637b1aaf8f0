"""The exceptions of the pipeline, and the exit codes of its commands.

PipelineError       stops a command; its message says what to do
  JobError          the job file, the manifest's columns or the schema is wrong; nothing has started
  OutputError       the output cannot be used or written
  StoppedError      the run stopped early: too many rows failed, or something outside the rows is broken
ItemError           one row cannot be answered; it becomes a Failure and the run goes on
  ReadError         the manifest row is malformed
  FetchError        its media cannot be downloaded
  DecodeError       its media cannot be decoded, or exceed the limits
  PromptError       its prompt does not fit the model
  GenerateError     the engine cannot answer it
  AnswerError       the answer does not fit the schema

Any other exception is a bug: it costs one row, of kind `internal`, and the run exits with 1.
"""

from __future__ import annotations

import traceback
from enum import IntEnum

from pipeline.types import Failure, Stage


class ExitCode(IntEnum):
    ALL_ANSWERED = 0
    INTERNAL_ERROR = 1
    CANNOT_RUN = 2
    FAILED_ROWS = 3
    INCOMPLETE = 4  # stopped early, or rows are missing
    HANG = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class PipelineError(Exception):
    """Stops a command. The message tells a person what to do."""


class JobError(PipelineError): ...


class OutputError(PipelineError): ...


class StoppedError(PipelineError): ...


class Terminated(BaseException):
    """SIGTERM as an exception, so that `finally` and `with` blocks run on the way out."""


class ItemError(Exception):
    """The failure of one row. The class tells the stage."""

    stage: Stage = "internal"

    def __init__(self, kind: str, message: str, *, text: str | None = None):
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.text = text  # the reply, where there is one that cannot be used

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def to_failure(self, item_id: str, attempts: int = 1) -> Failure:
        return Failure(item_id, self.stage, self.kind, self.message, attempts, self.text)


class ReadError(ItemError):
    stage: Stage = "read"


class FetchError(ItemError):
    stage: Stage = "fetch"


class DecodeError(ItemError):
    stage: Stage = "decode"


class PromptError(ItemError):
    stage: Stage = "prompt"


class GenerateError(ItemError):
    stage: Stage = "generate"


class AnswerError(ItemError):
    stage: Stage = "answer"


def build_internal_failure(item_id: str) -> Failure:
    """The Failure of an unexpected exception, with its traceback. To be called while handling it."""
    return Failure(item_id, "internal", "internal", traceback.format_exc(limit=-8))
