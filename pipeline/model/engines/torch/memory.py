"""Estimates the memory of weights and steps, and chooses engine sizes that fit into a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.shard import TensorParallel, WeightLayout

DEFAULT_SLOTS_BY_DEVICE = {"cuda": 256, "cpu": 64}
DEFAULT_PATCHES_BY_DEVICE = {"cuda": 32768, "cpu": 4096}  # per rank
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
    mlp_width = getattr(text, "intermediate_size", None) or (
        text.num_experts_per_tok * text.moe_intermediate_size + text.shared_expert_intermediate_size
    )
    text_numbers = prefill_tokens * (3 * mlp_width + 8 * text.hidden_size)
    vision_numbers = patches * 4 * max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    return int((text_numbers + vision_numbers) * item_bytes + slots * text.vocab_size * 16)


def measure_free_cuda_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - CUDA_MEMORY_FRACTION) * total)


def measure_cpu_cache_bytes() -> int:
    return int(CPU_MEMORY_FRACTION * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def refuse_too_large(model: Any, layout: WeightLayout) -> None:
    """A JobError, before any weight is read, where the device cannot hold the model."""
    if layout.device.type == "cuda":
        refuse_too_large_for_gpu(model, layout)
        return
    needed = estimate_weight_bytes(model, layout) * layout.tp.size  # all ranks share this machine
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise JobError(
            f"model.weights: the model needs {needed / GB:.1f} GB for its weights and this machine has "
            f"{memory / GB:.1f}; `model.quantize: int4` or a smaller model may fit"
        )


def refuse_too_large_for_gpu(model: Any, layout: WeightLayout) -> None:
    """The error says how many GPUs would hold the model."""
    free, needed = measure_free_cuda_bytes(layout.device), estimate_weight_bytes(model, layout)
    if needed <= free:
        return
    problem = (
        f"model.weights: on each of {layout.tp.size} GPU(s) the model needs {needed / GB:.1f} GB for its weights and "
        f"{free / GB:.1f} are free; "
    )
    for size in shard.list_tp_sizes(model.config.get_text_config(), group_sizes=layout.group_sizes):
        share = estimate_weight_bytes(model, replace(layout, tp=TensorParallel(0, size)))
        if size > layout.tp.size and share <= free:
            advice = f"with model.tensor_parallel: {size} and workers.generate.gpus: {size} it needs {share / GB:.1f}"
            raise JobError(problem + advice)
    advice = "no number of GPUs that the model can be divided among is enough: set model.quantize: int4, or take a "
    raise JobError(f"{problem}{advice}smaller model")


def estimate_weight_bytes(model: Any, layout: WeightLayout) -> int:
    """The bytes of a rank's share, from the shapes of a model without memory."""
    text_config, item_bytes, total = model.config.get_text_config(), layout.dtype.itemsize, 0.0
    for name, param in model.named_parameters():
        part = layout.assign_shard(name, text_config)
        share = (part.span[1] - part.span[0]) / param.shape[part.dim] if part else 1.0
        group_size = 1
        if param.dim() > 1 and layout.architecture.is_text_layer(name):
            group_size = shard.find_group_size(param.shape[-1], layout.group_sizes)
        weight_bytes = item_bytes if group_size == 1 else 0.5 + 2 * item_bytes / group_size  # with scale and zero
        total += share * param.numel() * weight_bytes
    return int(total)
