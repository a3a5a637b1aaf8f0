"""The KV cache, and how the tokens of one step map to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.torch.host_memory import copy_to_device


@dataclass(slots=True)
class KVCache:
    """Keys and values of all sequences. Each has one run of it; the last token is a sink for padding."""

    keys: Tensor  # [layers, tokens + 1, heads, dim]
    values: Tensor  # the same

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVCache:
        layers, tokens, heads, dim = shape
        pair = torch.empty(2, layers, tokens + 1, heads, dim, dtype=dtype, device=device)
        return cls(pair[0], pair[1])


@dataclass(slots=True)
class FlashLayout:
    """Where sequences start and end, as the flash kernel takes it: int32 on its device."""

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
        return cls(offsets, starts, lengths, (max(query_lengths), max(run_lengths)))


@dataclass(slots=True)
class PackedBatch:
    """The sequences of a step, whose tokens are laid end to end."""

    cache: KVCache
    cache_indices: Tensor  # [tokens] where in the cache the keys and values of each token go
    query_lengths: Sequence[int] = ()  # [sequences] tokens of each in this step
    run_starts: Sequence[int] = ()  # [sequences]
    run_lengths: Sequence[int] = ()  # [sequences] tokens in the run after this step
    flash_layout: FlashLayout | None = None  # the same three for the flash kernel, where there is one
