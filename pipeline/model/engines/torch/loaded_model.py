"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.model.engines.torch.shard import Place


@dataclass(frozen=True, slots=True)
class Loaded:
    tower: Any  # pixels -> embeddings
    language: Any  # embeddings -> hidden states
    head: Any  # hidden states -> logits
    stop: frozenset[int]
    cache_shape: tuple[int, int, int]  # layers, heads, dim
    vocabulary: int

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.language.embed_tokens.weight.device  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Form:
    """What of the weights is held, as what, and where."""

    place: Place
    dtype: torch.dtype
    device: torch.device
    groups: tuple[int, ...] = ()  # that four-bit weights come in
    rounds: bool = False  # dense weights, to four bits
