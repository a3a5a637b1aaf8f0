"""What can go wrong.

PipelineError       stops a command, with a message that says what to do
  JobError          the job file, the manifest's shape or the schema is wrong; nothing has started
  OutputError       the output cannot be used or written
  StoppedError      the run was stopped: too many rows failed, or work is missing at the end
ItemError           this one row cannot be answered; it becomes an error row and the run goes on
  ReadError         the row of the manifest does not say what to look at
  FetchError        its bytes did not arrive
  DecodeError       its bytes are not what they claim, or more than the limits allow
  PromptError       it does not fit the model
  GenerateError     the engine cannot answer it
  AnswerError       the answer does not fit the schema

Anything else is a bug: one row of kind `internal`, and a run that exits non-zero.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from pipeline.types import Failure, Stage

if TYPE_CHECKING:
    pass


class PipelineError(Exception):
    """Stops a command. The message is for a person and says what to do."""


class JobError(PipelineError): ...


class OutputError(PipelineError): ...


class StoppedError(PipelineError): ...


class Terminated(BaseException):
    """SIGTERM, as an exception: what is open is closed on the way out."""


class ItemError(Exception):
    """One row's failure: the stage by class, the kind by word, for people by message."""

    stage: Stage = "internal"

    def __init__(self, kind: str, message: str, *, text: str | None = None):
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.text = text  # what the model said, where it cannot be used

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
    """What must not happen costs one row, is shown, and makes the run exit with 1."""
    return Failure(item_id, "internal", "internal", traceback.format_exc(limit=-8))
