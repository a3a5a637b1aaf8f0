"""A device's memory -> whether a model fits at all, and how many tokens of cache fit beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.limits import Limits
from pipeline.model.engines.torch.shard import Place

if TYPE_CHECKING:
    from pipeline.model.engines.torch.load import Form, Loaded

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


def refuse_too_large(model: Any, form: Form) -> None:
    """Before a weight is read: a model that the device cannot hold says how many would."""
    now = form.place.size
    sizes = [now, *(size for size in shard.possible(model.config.text_config, groups=form.groups) if size > now)]
    needs = {size: held_bytes(model, replace(form, place=Place(0, size))) for size in sizes}
    if form.device.type != "cuda":
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needs[now] * now > there:
            said = f"{needs[now] * now / GB:.1f} GB for its weights and this machine has {there / GB:.1f}"
            raise JobError(f"model.weights: the model needs {said}; `model.quantize: int4` or a smaller model may fit")
        return
    free = cuda_bytes(form.device)
    if needs[now] <= free:
        return
    enough = next((size for size in sizes if needs[size] <= free), None)
    advice = (
        f"with model.tensor_parallel: {enough} and workers.generate.gpus: {enough} it needs {needs[enough] / GB:.1f}"
        if enough
        else "no number of them that it can be divided among is enough: `model.quantize: int4`, or a smaller model"
    )
    raise JobError(
        f"model.weights: on each of {now} GPU(s) the model needs {needs[now] / GB:.1f} GB for its weights and "
        f"{free / GB:.1f} are free; {advice}"
    )


def held_bytes(model: Any, form: Form) -> int:
    """What a rank's share of the weights takes, by the shapes of a model without memory."""
    text, item, total = model.config.text_config, form.dtype.itemsize, 0.0
    for name, param in model.named_parameters():
        part = shard.part(name, text, form.place, groups=form.groups)
        share = (part.span[1] - part.span[0]) / param.shape[part.dim] if part else 1.0
        group = shard.unit(param.shape[-1], form.groups) if param.dim() > 1 and ".layers." in name else 1
        total += share * param.numel() * (item if group == 1 else 0.5 + 2 * item / group)
    return int(total)
