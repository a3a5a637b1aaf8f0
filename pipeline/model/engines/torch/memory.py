"""A device's memory -> whether a model fits at all, and how many tokens of cache fit beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.model.engines.torch.oom_backoff import Limits

if TYPE_CHECKING:
    from pipeline.model.engines.torch.loaded_model import Loaded

CPU_SHARE = 0.25  # of free memory: the rest of the machine is decoding pictures
CUDA_SHARE = 0.92  # of all memory: fragments and libraries take the rest
GB = 10**9


@dataclass(frozen=True, slots=True)
class Room:
    slots: int
    kv_tokens: int
    patches: int  # in one call, by all ranks together
    prefill_tokens: int

    @classmethod
    def least(cls, rooms: Sequence[Room]) -> Room:
        return cls(*(min(values) for values in zip(*map(astuple, rooms), strict=True)))

    def limits(self) -> Limits:
        return Limits(prefill_tokens=self.prefill_tokens, patches=self.patches, rows=self.slots)


def plan(
    loaded: Loaded,
    *,
    context: int,
    ranks: int = 1,
    slots: int | None = None,
    kv_tokens: int | None = None,
    patches: int | None = None,
    prefill_tokens: int | None = None,
) -> Room:
    """What is not said is chosen, by the memory of one of so many ranks."""
    cuda = loaded.device.type == "cuda"
    slots = slots or (256 if cuda else 64)
    patches = patches or (32768 if cuda else 4096) * ranks
    prefill_tokens = prefill_tokens or 4096
    if kv_tokens is None:
        token_bytes = 2 * math.prod(loaded.cache_shape) * loaded.dtype.itemsize
        activations = step_bytes(loaded, slots, patches // ranks, prefill_tokens)
        free = cuda_bytes(loaded.device) - activations if cuda else cpu_bytes() // ranks
        kv_tokens = min(max(free // token_bytes, 1), slots * context)
    return Room(slots, int(kv_tokens), patches, prefill_tokens)


def step_bytes(loaded: Loaded, slots: int, patches: int, prefill_tokens: int) -> int:
    """The widest tensors of a step, some of them alive at once."""
    text, vision = loaded.language.config, loaded.tower.config
    width = max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    wide = prefill_tokens * (3 * text.intermediate_size + 8 * text.hidden_size) + patches * 4 * width
    return int(wide * loaded.dtype.itemsize + slots * loaded.vocabulary * 16)


def cuda_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - CUDA_SHARE) * total)


def cpu_bytes() -> int:
    return int(CPU_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
