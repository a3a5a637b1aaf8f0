"""A device's memory -> whether a model fits at all, and how many tokens of cache fit beside it."""

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

CPU_MEMORY_FRACTION = 0.25  # of free memory: the rest of the machine is decoding pictures
CUDA_MEMORY_FRACTION = 0.92  # of all memory: fragments and libraries take the rest
GB = 10**9


@dataclass(frozen=True, slots=True)
class EngineSizes:
    slots: int
    kv_tokens: int
    patches: int  # in one call, by all ranks together
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
    """What is not said is chosen, by the memory of one of so many ranks."""
    cuda = loaded.device.type == "cuda"
    slots = slots or (256 if cuda else 64)
    patches = patches or (32768 if cuda else 4096) * rank_count
    prefill_tokens = prefill_tokens or 4096
    if kv_tokens is None:
        token_bytes = 2 * math.prod(loaded.cache_shape) * loaded.dtype.itemsize
        activations = estimate_step_bytes(loaded, slots, patches // rank_count, prefill_tokens)
        free = measure_free_cuda_bytes(loaded.device) - activations if cuda else measure_cpu_cache_bytes() // rank_count
        kv_tokens = min(max(free // token_bytes, 1), slots * context_length)
    return EngineSizes(slots, int(kv_tokens), patches, prefill_tokens)


def estimate_step_bytes(loaded: LoadedModel, slots: int, patches: int, prefill_tokens: int) -> int:
    """The widest tensors of a step, some of them alive at once."""
    text, vision = loaded.language_model.config, loaded.vision_tower.config
    width = max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    wide = prefill_tokens * (3 * text.intermediate_size + 8 * text.hidden_size) + patches * 4 * width
    return int(wide * loaded.dtype.itemsize + slots * loaded.vocabulary_size * 16)


def measure_free_cuda_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - CUDA_MEMORY_FRACTION) * total)


def measure_cpu_cache_bytes() -> int:
    return int(CPU_MEMORY_FRACTION * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
