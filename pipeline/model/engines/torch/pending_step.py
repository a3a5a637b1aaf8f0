"""A step that the device computes while the host still works on the step before it.

Between two steps the host reads the sampled tokens, advances grammars, writes replies, admits sequences and prepares
grammar masks. To keep a GPU busy meanwhile, the engine launches step n+1 before it reads the tokens of step n: they
are on the device already, and step n+1 takes them from there (UnreadTokens). Once the host has read them, it may find
that parts of step n+1 are of no use:

- A sequence ended with its token of step n, or its grammar refused that token: its part of step n+1 is dropped.
- A grammar forces tokens after the sampled one: step n+1 counts, but its logits do not. The sequence computes the
  forced tokens in step n+2 and samples then.
- Sequences admitted meanwhile join step n+2.

If the launch itself fails, nothing is pending: the next step schedules the same work again and handles the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.host_memory import allocate_pinned, copy_to_device
from pipeline.model.engines.torch.scheduler import ScheduledBatch
from pipeline.model.engines.torch.sequence import SequenceState

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UnreadTokens:
    """Sampled tokens that are still on their way to the host."""

    tokens: Tensor  # [sampled sequences], on the device
    index_by_sequence: Mapping[SequenceState, int]  # into `tokens`, for the sequences that continue


@dataclass(frozen=True, slots=True)
class PendingStep:
    batch: ScheduledBatch
    logits: Tensor  # [sequences, vocabulary]
    sequences: Sequence[SequenceState]  # those of the batch that get logits, in the order of the rows of `logits`
    scores: Tensor  # log-probabilities of the targets
    targets: Sequence[tuple[SequenceState, Numbers]]  # of sequences that ask for probabilities: their continuations
    sums: Tensor  # [sequences, width] of states
    pooled: Sequence[SequenceState]  # those of the batch that these belong to

    def select_unfinished(self) -> ScheduledBatch:
        return [(sequence, count) for sequence, count in self.batch if not (sequence.finish or sequence.failure)]

    def select_logits(self, sequences: Sequence[SequenceState]) -> Tensor:
        """A copy in float32 of the rows of these sequences, which are in the order of the batch."""
        wanted = set(sequences)
        rows = [row for row, sequence in enumerate(self.sequences) if sequence in wanted]
        if len(rows) == len(self.sequences):
            return self.logits.to(torch.float32, copy=True)
        return self.logits.index_select(0, copy_to_device(np.asarray(rows, np.int64), self.logits.device)).float()

    def select_sums(self, batch: ScheduledBatch) -> tuple[list[SequenceState], Tensor]:
        """Sequences of a part of the batch that ask for a vector, and what is added to each."""
        wanted = {sequence for sequence, _ in batch}
        rows = [row for row, sequence in enumerate(self.pooled) if sequence in wanted]
        sums = self.sums
        if len(rows) < len(self.pooled):
            sums = sums.index_select(0, copy_to_device(np.asarray(rows, np.int64), sums.device))
        return [self.pooled[row] for row in rows], sums

    def select_scores(self, batch: ScheduledBatch) -> tuple[list[tuple[SequenceState, Numbers]], Tensor]:
        """Sequences of a part of the batch, each with the numbers of continuations; and what is added to their scores,
        of all sequences in one row."""
        wanted = {sequence for sequence, _ in batch}
        scored = [(sequence, numbers) for sequence, numbers in self.targets if sequence in wanted]
        if len(scored) == len(self.targets):
            return scored, self.scores
        rows = np.repeat([sequence in wanted for sequence, _ in self.targets], [len(each) for _, each in self.targets])
        return scored, self.scores.index_select(0, copy_to_device(np.flatnonzero(rows), self.scores.device))


def start_copy_to_host(*columns: Tensor) -> Callable[[], list[list[float]]]:
    """The columns as lists: see `start_copy`."""
    if columns[0].device.type != "cuda":
        return lambda: [column.tolist() for column in columns]
    read = start_copy(torch.stack([column.double() for column in columns]))  # doubles hold every token number
    return lambda: read().tolist()


def start_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Start the copy now, ahead of the next step in the stream; the returned function waits for it and reads."""
    if tensor.device.type != "cuda" or not tensor.numel():
        return tensor.cpu
    host = allocate_pinned(tensor.shape, tensor.dtype, tensor.device).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> Tensor:
        copied.synchronize()
        return host

    return read
