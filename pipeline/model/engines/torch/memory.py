"""How much memory a device has and a step takes, and the sizes of an engine that follow from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

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


def estimate_step_bytes(
    text: Any, vision: Any, item_bytes: int, *, slots: int, patches: int, prefill_tokens: int
) -> int:
    """Bytes of the widest tensors of a step, as far as they live at the same time. `text` and `vision` are configs."""
    text_numbers = prefill_tokens * (3 * text.intermediate_size + 8 * text.hidden_size)
    vision_numbers = patches * 4 * max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    return int((text_numbers + vision_numbers) * item_bytes + slots * text.vocab_size * 16)


def measure_free_cuda_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - CUDA_MEMORY_FRACTION) * total)


def measure_cpu_cache_bytes() -> int:
    return int(CPU_MEMORY_FRACTION * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
