"""A model on its device, in the parts that the engine runs.

It stands apart from `model_loader`, because the memory plan needs it and the loader needs the memory plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.model.families.model_architecture import ModelArchitecture, VisionTower


@dataclass(frozen=True, slots=True)
class LoadedModel:
    architecture: ModelArchitecture
    vision_tower: VisionTower  # patches -> features
    language_model: Any  # embeddings -> hidden states
    lm_head: Any  # hidden states -> logits
    stop_tokens: frozenset[int]
    cache_shape: tuple[int, int, int]  # layers, key heads of this rank, head dim
    vocabulary_size: int

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device  # type: ignore[no-any-return]
