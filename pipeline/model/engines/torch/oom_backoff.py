"""Runs work that may fail, in smaller and smaller parts.

Out of memory is no sequence's fault: the limits are halved for good, and the engine schedules the work again. Any other
error of the model comes from some sequence: the batch is halved until that sequence is alone, and it fails with the
error. So work must change no state before its last call that may fail.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.errors import GenerateError

MODEL_ERRORS = (RuntimeError, ValueError, IndexError)  # what a model raises; out of memory is a RuntimeError too
MIN_BUDGET = 64  # of tokens and of patches
WorkItem = TypeVar("WorkItem")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepLimits:
    """The most that one call of the model gets."""

    prefill_tokens: int
    patches: int
    max_sequences: int
    is_halved: bool = False

    def halve(self) -> bool:
        """False where the limits are as low as they can be."""
        if self.prefill_tokens <= MIN_BUDGET and self.patches <= MIN_BUDGET and self.max_sequences == 1:
            return False
        if not self.is_halved:
            log.warning("out of memory: prefill_tokens and patches are halved from here on, and the step is repeated")
        self.prefill_tokens = max(MIN_BUDGET, self.prefill_tokens // 2)
        self.patches = max(MIN_BUDGET, self.patches // 2)
        self.max_sequences = max(1, self.max_sequences // 2)
        self.is_halved = True
        return True


class LimitsFile:
    """Hands halved limits to the process that is started in place of this one.

    Out of memory on one of several ranks ends the whole replica, because the others wait in a collective. Without the
    file, the next process would begin with the same limits and end in the same way. Processes that have the same
    configuration and the same parent share the file: the restarts of a replica, and other replicas on its machine.
    """

    def __init__(self, configuration: object):
        key = hashlib.blake2b(f"{os.getppid()} {configuration!r}".encode(), digest_size=12).hexdigest()
        self.path = Path(tempfile.gettempdir()) / f"vlbatch-limits-{os.getuid()}-{key}.json"

    def save_halved(self, limits: StepLimits) -> None:
        if limits.halve():
            part = self.path.with_suffix(f".{os.getpid()}")
            with suppress(OSError):  # without the file the next process starts as this one did
                part.write_text(json.dumps(asdict(limits)))
                part.replace(self.path)

    def apply(self, limits: StepLimits) -> None:
        """Lower the limits to those in the file, if there is one of this user."""
        with suppress(OSError, ValueError, TypeError):
            saved = StepLimits(**json.loads(self.path.read_text()))
            if self.path.stat().st_uid != os.getuid():
                return
            limits.prefill_tokens = min(limits.prefill_tokens, max(MIN_BUDGET, saved.prefill_tokens))
            limits.patches = min(limits.patches, max(MIN_BUDGET, saved.patches))
            limits.max_sequences = min(limits.max_sequences, max(1, saved.max_sequences))
            limits.is_halved = True
            log.warning(f"the process before this one ran out of memory: prefill_tokens is {limits.prefill_tokens} now")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def run_or_split(
    items: Sequence[WorkItem],
    run: Callable[[Sequence[WorkItem]], None],
    report_failure: Callable[[WorkItem, GenerateError], None],
    limits: StepLimits,
) -> bool:
    """Run all items but those that fail alone. After an out of memory this part and what follows it are left undone.

    So items are always done in their order: the features of a clip are kept in the order of its slices.
    """
    try:
        run(items)
    except torch.OutOfMemoryError as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not limits.halve():
            message = f"the model ran out of memory on this row alone: {error}"
            report_failure(items[0], GenerateError("out_of_memory", message))
        return False
    except torch.AcceleratorError:
        raise  # this process has lost the device and can answer nothing any more
    except MODEL_ERRORS as error:
        if len(items) == 1:
            message = f"the model failed on this row: {type(error).__name__}: {error}"
            report_failure(items[0], GenerateError("model", message))
            return True
        half = len(items) // 2
        parts = items[:half], items[half:]
        return all(run_or_split(part, run, report_failure, limits) for part in parts)
    return True
