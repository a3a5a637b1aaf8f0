"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.model.engines.torch.shard import TensorParallel


@dataclass(frozen=True, slots=True)
class LoadedModel:
    vision_tower: Any  # pixels -> embeddings
    language_model: Any  # embeddings -> hidden states
    lm_head: Any  # hidden states -> logits
    stop_tokens: frozenset[int]
    cache_shape: tuple[int, int, int]  # layers, heads, dim
    vocabulary_size: int

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """What of the weights is held, as what, and where."""

    tp: TensorParallel
    dtype: torch.dtype
    device: torch.device
    group_sizes: tuple[int, ...] = ()  # that four-bit weights come in
    quantize_dense: bool = False  # dense weights, to four bits
