"""Tokens chosen, still on the device -> the next pass, launched before the host has read them.

While the device computes it the host does what it has to do between two passes: follow the grammars, write replies,
let rows in, draw up masks. What it finds out decides what of that pass counts. A row that ended, which is also what
becomes of one that is refused its token, has computed one token for nothing; where a grammar knows more tokens than the
chosen one the row's logits are of no use, and it goes on a pass later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.engines.torch.forward import ScheduledBatch
from pipeline.model.engines.torch.sequence import SequenceState


@dataclass(slots=True)
class PendingStep:
    """A pass under way."""

    batch: ScheduledBatch
    logits: Tensor  # a line for each of `rows`
    sequences: Sequence[SequenceState]

    def select_unfinished(self) -> list[tuple[SequenceState, int]]:
        """What of the work counts after all."""
        return [(row, count) for row, count in self.batch if not (row.finish or row.failure)]

    def select_logits(self, sequences: Sequence[SequenceState]) -> Tensor:
        """The logits of those of its rows, in order."""
        wanted = set(sequences)
        lines = [line for line, row in enumerate(self.sequences) if row in wanted]
        return self.logits if len(lines) == len(self.sequences) else self.logits[lines]


def start_copy_to_host(tokens: Tensor, logprobs: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
    """Both on their way to the host, behind nothing that is launched from here on; the call waits for them."""
    if tokens.device.type != "cuda":
        return lambda: (tokens.tolist(), logprobs.tolist())
    sent = torch.stack([tokens.double(), logprobs.double()])
    host = torch.empty(sent.shape, dtype=sent.dtype, pin_memory=True).copy_(sent, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()

    def read() -> tuple[list[int], list[float]]:
        there.synchronize()
        return host[0].long().tolist(), host[1].tolist()

    return read
