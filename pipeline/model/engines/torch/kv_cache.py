"""The KV cache, and how the tokens of one step map to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.engines.torch.linear_state import LinearStates, StateLayout


class RunCopy(NamedTuple):
    """The first tokens of one run, which become those of another."""

    source: int  # where the runs start
    target: int
    tokens: int


@dataclass(slots=True)
class KVCache:
    """Keys and values of all sequences. Each has one run of it; the last token is a sink for padding."""

    keys: list[Tensor]  # of each layer [tokens + 1, heads, dim]; compiled code would copy a slice of a stacked tensor
    values: list[Tensor]  # the same

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVCache:
        layers, tokens, heads, dim = shape
        tensors = [torch.empty(tokens + 1, heads, dim, dtype=dtype, device=device) for _ in range(2 * layers)]
        return cls(tensors[:layers], tensors[layers:])

    def copy_tokens(self, copies: Sequence[RunCopy]) -> None:
        """All layers at once: on CUDA this is one kernel for many copies."""
        layers = [*self.keys, *self.values]
        sources, targets = (
            [part.narrow(0, copy[end], copy.tokens) for copy in copies for part in layers] for end in (0, 1)
        )
        torch._foreach_copy_(targets, sources)


@dataclass(slots=True)
class FlashLayout:
    """Where consecutive sequences start and end, as one call of the flash kernel takes it: int32 on its device."""

    tokens: int  # of these sequences in this step
    query_offsets: Tensor  # [sequences + 1] where the queries of each start, and where the last ones end
    run_starts: Tensor  # [sequences + 1]; the kernel reads one more than there are sequences
    run_lengths: Tensor  # [sequences] tokens in the run after this step
    max_lengths: tuple[int, int]  # the most queries of a sequence, the most tokens in a run

    @classmethod
    def from_lengths(
        cls, query_lengths: Sequence[int], run_starts: Sequence[int], run_lengths: Sequence[int], device: torch.device
    ) -> FlashLayout:
        parts = np.cumsum([0, *query_lengths]), [*run_starts, 0], run_lengths
        offsets, starts, lengths = (copy_to_device(np.asarray(part, np.int32), device) for part in parts)
        return cls(sum(query_lengths), offsets, starts, lengths, (max(query_lengths), max(run_lengths)))


@dataclass(slots=True)
class PackedBatch:
    """The sequences of a step, whose tokens are laid end to end."""

    cache: KVCache
    cache_indices: Tensor  # [tokens] where in the cache the keys and values of each token go
    query_lengths: Sequence[int] = ()  # [sequences] tokens of each in this step
    run_starts: Sequence[int] = ()  # [sequences]
    run_lengths: Sequence[int] = ()  # [sequences] tokens in the run after this step
    flash_layouts: Sequence[FlashLayout] = ()  # the same three for the calls of the flash kernel, where there is one
    masks: dict[int, Tensor] = field(default_factory=dict)  # [tokens, run] by the number of the sequence, if it has one
    states: LinearStates | None = None  # where the model has linear attention
    state_layout: StateLayout | None = None


def build_branch_masks(
    branch_lengths: Sequence[Sequence[int]], run_lengths: Sequence[int], device: torch.device
) -> dict[int, Tensor]:
    """By the number of the sequence, [tokens, run]: a branch sees what lies before it in the prompt and in itself.

    >>> build_branch_masks([(), (1, 2)], [4, 5], torch.device("cpu"))[1].int().tolist()
    [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """
    masks = {}
    for number, (lengths, run_length) in enumerate(zip(branch_lengths, run_lengths, strict=True)):
        if lengths:
            branch = np.repeat(np.arange(len(lengths)), lengths)
            own = np.tril(branch[:, None] == branch)
            mask = np.pad(own, ((0, 0), (run_length - len(own), 0)), constant_values=True)
            masks[number] = torch.from_numpy(mask).to(device)
    return masks


def build_flash_layouts(
    query_lengths: Sequence[int], run_starts: Sequence[int], run_lengths: Sequence[int], device: torch.device
) -> list[FlashLayout]:
    """One call for the sequences of one token, which come first, and one for the others.

    The kernel chooses its tiles by the longest sequence: beside a long one, a single token would take a tile of 128.
    """
    single = sum(1 for _ in takewhile(lambda length: length == 1, query_lengths))
    spans = [span for span in (slice(0, single), slice(single, len(query_lengths))) if query_lengths[span]]
    return [
        FlashLayout.from_lengths(query_lengths[span], run_starts[span], run_lengths[span], device) for span in spans
    ]
