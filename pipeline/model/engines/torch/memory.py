"""Estimates the memory of weights and steps, and chooses engine sizes that fit into a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.linear_state import MAX_CHUNK_SIZE, MAX_GROUP_CHUNKS
from pipeline.model.engines.torch.shard import TensorParallel, WeightLayout

DEFAULT_SLOTS_BY_DEVICE = {"cuda": 256, "cpu": 64}
DEFAULT_PATCHES_BY_DEVICE = {"cuda": 32768, "cpu": 4096}  # per rank
CPU_MEMORY_FRACTION = 0.25  # of the free memory: other workers on the machine decode pictures
CUDA_MEMORY_FRACTION = 0.92  # of all memory: fragments and libraries take the rest
KEPT_CALLS = 2  # features are kept of as many patches as so many calls of the vision tower encode
ALLOCATOR_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
ALLOCATOR_VARIABLES = (ALLOCATOR_VARIABLE, "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
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


def use_expandable_segments() -> None:
    """Keep freed memory from being lost between steps of other sizes, unless the user has configured the allocator.

    torch reads the variable when it first allocates memory on a GPU.
    """
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLE] = "expandable_segments:True"


def estimate_step_bytes(
    text: Any, vision: Any, item_bytes: int, *, slots: int, patches: int, prefill_tokens: int, ranks: int = 1
) -> int:
    """Bytes of the widest tensors of a step, as far as they live at the same time, and of the features that are kept.

    `text` and `vision` are configs, and `patches` are those of one rank; each rank keeps the features of all.
    """
    mlp_width = getattr(text, "intermediate_size", None) or (
        text.num_experts_per_tok * text.moe_intermediate_size + text.shared_expert_intermediate_size
    )
    text_tokens = prefill_tokens + 2 * slots  # graphs have memory of their own for the slots
    text_numbers = text_tokens * (3 * mlp_width + 8 * text.hidden_size)
    delta_bytes = 0
    if delta_heads := getattr(text, "linear_num_value_heads", 0):  # of Gated DeltaNet, which is computed in float32
        widths = text.linear_key_head_dim, text.linear_value_head_dim
        state_numbers = 2 * slots * delta_heads * widths[0] * widths[1]  # of a pass, and of the graphs
        group_tokens = MAX_GROUP_CHUNKS * MAX_CHUNK_SIZE  # padding included
        delta_bytes = 4 * (state_numbers + group_tokens * delta_heads * (6 * sum(widths) + 4 * MAX_CHUNK_SIZE))
    vision_numbers = patches * 4 * max(getattr(vision, "intermediate_size", 0), 4 * vision.hidden_size)
    feature_bytes = ranks * estimate_feature_bytes(text, vision, item_bytes, patches=patches)
    logit_bytes = 2 * item_bytes + 4 + 16  # of this step and the next, in float32, and what sampling makes of them
    numbers = text_numbers + vision_numbers
    return int(numbers * item_bytes + feature_bytes + delta_bytes + slots * text.vocab_size * logit_bytes)


def estimate_feature_bytes(text: Any, vision: Any, item_bytes: int, *, patches: int) -> int:
    """Bytes of the features that are kept of the pictures that one rank encodes."""
    feature_layers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    kept_tokens = KEPT_CALLS * patches // vision.spatial_merge_size**2
    return int(kept_tokens * feature_layers * text.hidden_size * item_bytes)


def choose_state_slots(cache_bytes: int, state_bytes: int, slots: int, *, requested: int | None) -> int:
    """Slots whose states of linear attention take at most half of the memory, which they share with the KV cache."""
    if requested is None:
        return max(1, min(slots, cache_bytes // 2 // state_bytes))
    if requested * state_bytes > cache_bytes:
        raise JobError(
            f"engine.slots: the states of {requested} rows need {requested * state_bytes / GB:.1f} GB and "
            f"{max(cache_bytes, 0) / GB:.1f} are free; {max(cache_bytes, 0) // 2 // state_bytes} slots fit"
        )
    return requested


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
        share = part.length / param.shape[part.dim] if part else 1.0
        group_size = 1
        if param.dim() > 1 and layout.architecture.is_quantizable(name):
            group_size = shard.find_group_size(param.shape[-1], layout.group_sizes)
        weight_bytes = item_bytes if group_size == 1 else 0.5 + 2 * item_bytes / group_size  # with scale and zero
        total += share * param.numel() * weight_bytes
    return int(total)
