"""Chooses the sizes of an engine (slots, KV cache, budgets of a step) by the memory of its device."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.model.engines.torch.oom_backoff import StepLimits

if TYPE_CHECKING:
    from pipeline.model.engines.torch.loaded_model import LoadedModel

DEFAULT_SLOTS_BY_DEVICE = {"cuda": 256, "cpu": 64}
DEFAULT_PATCHES_BY_DEVICE = {"cuda": 32768, "cpu": 4096}  # per rank
DEFAULT_PREFILL_TOKENS = 4096
CPU_MEMORY_FRACTION = 0.25  # of the free memory: other workers on the machine decode pictures
CUDA_MEMORY_FRACTION = 0.92  # of all memory: fragments and libraries take the rest
GB = 10**9


@dataclass(frozen=True, slots=True)
class EngineSizes:
    slots: int
    kv_tokens: int
    patches: int  # in one call of the vision tower, of all ranks together
    prefill_tokens: int

    @classmethod
    def take_smallest(cls, rank_sizes: Sequence[EngineSizes]) -> EngineSizes:
        return cls(*(min(values) for values in zip(*map(astuple, rank_sizes), strict=True)))

    def to_step_limits(self) -> StepLimits:
        return StepLimits(prefill_tokens=self.prefill_tokens, patches=self.patches, max_sequences=self.slots)


def choose_sizes(
    loaded: LoadedModel,
    *,
    context_length: int,
    rank_count: int = 1,
    slots: int | None = None,
    kv_tokens: int | None = None,
    patches: int | None = None,
    prefill_tokens: int | None = None,
) -> EngineSizes:
    """Sizes that were not requested follow from the memory that this rank has."""
    device = loaded.device
    slots = slots or DEFAULT_SLOTS_BY_DEVICE[device.type]
    patches = patches or DEFAULT_PATCHES_BY_DEVICE[device.type] * rank_count
    prefill_tokens = prefill_tokens or DEFAULT_PREFILL_TOKENS
    if kv_tokens is None:
        if device.type == "cuda":
            step_bytes = estimate_step_bytes(loaded, slots, patches // rank_count, prefill_tokens)
            cache_bytes = measure_free_cuda_bytes(device) - step_bytes
        else:
            cache_bytes = measure_cpu_cache_bytes() // rank_count
        token_bytes = 2 * math.prod(loaded.cache_shape) * loaded.dtype.itemsize  # keys and values
        kv_tokens = min(max(cache_bytes // token_bytes, 1), slots * context_length)
    return EngineSizes(slots, kv_tokens, patches, prefill_tokens)


def estimate_step_bytes(loaded: LoadedModel, slots: int, patches: int, prefill_tokens: int) -> int:
    """Bytes of the widest tensors of a step, as far as they live at the same time."""
    text, vision = loaded.language_model.config, loaded.vision_tower.config
    text_numbers = prefill_tokens * (3 * text.intermediate_size + 8 * text.hidden_size)
    vision_numbers = patches * 4 * max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    logit_bytes = slots * loaded.vocabulary_size * 16
    return int((text_numbers + vision_numbers) * loaded.dtype.itemsize + logit_bytes)


def measure_free_cuda_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - CUDA_MEMORY_FRACTION) * total)


def measure_cpu_cache_bytes() -> int:
    return int(CPU_MEMORY_FRACTION * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
