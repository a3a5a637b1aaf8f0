"""Work that may fail -> the same work in smaller pieces, until what is at fault stands alone.

Out of memory is nobody's fault: the limits are halved for good and the work is planned again. Any
other error of the model is some row's: the batch is halved until that row is alone, and it fails
with what was said. Work must change nothing before it can no longer fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline.errors import GenerateError

WorkItem = TypeVar("WorkItem")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepLimits:
    """Of one call of the model."""

    prefill_tokens: int
    patches: int
    max_sequences: int
    halvings: int = 0

    def halve(self) -> bool:
        """False when there is nothing left to halve."""
        if self.prefill_tokens <= 64 and self.patches <= 64 and self.max_sequences == 1:
            return False
        if not self.halvings:
            log.warning("out of memory: prefill_tokens and patches are halved from here on, and the step is repeated")
        self.prefill_tokens = max(64, self.prefill_tokens // 2)
        self.patches = max(64, self.patches // 2)
        self.max_sequences = max(1, self.max_sequences // 2)
        self.halvings += 1
        return True


def run_or_split(
    items: Sequence[WorkItem],
    run: Callable[[Sequence[WorkItem]], None],
    report_failure: Callable[[WorkItem, GenerateError], None],
    limits: StepLimits,
) -> None:
    """Do it for all items, or for all but those that cannot be done; what ran out of memory is left undone."""
    try:
        run(items)
    except torch.OutOfMemoryError as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not limits.halve():
            report_failure(
                items[0], GenerateError("out_of_memory", f"the model ran out of memory on this row alone: {error}")
            )
    except torch.AcceleratorError:
        raise  # the device is lost to this process: no row of it can be answered here
    except (RuntimeError, ValueError, IndexError) as error:
        if len(items) == 1:
            report_failure(
                items[0], GenerateError("model", f"the model failed on this row: {type(error).__name__}: {error}")
            )
        else:
            half = len(items) // 2
            run_or_split(items[:half], run, report_failure, limits)
            run_or_split(items[half:], run, report_failure, limits)
