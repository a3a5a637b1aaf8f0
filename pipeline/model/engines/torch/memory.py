"""Estimates the memory of weights and steps, and chooses engine sizes that fit into a device.

`plan` imports it, so it imports torch only where a device is asked.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.shard import TensorParallel, WeightLayout

if TYPE_CHECKING:
    import torch

DEFAULT_SLOTS_BY_DEVICE = {"cuda": 256, "cpu": 64}
DEFAULT_PATCHES_BY_DEVICE = {"cuda": 32768, "cpu": 4096}  # per rank
CPU_MEMORY_FRACTION = 0.25  # of the free memory: other workers on the machine decode pictures
CUDA_MEMORY_FRACTION = 0.92  # of all memory: fragments and libraries take the rest
SLOTS_PER_KEPT_ROW = 4  # of the states of linear attention
ROWS_PER_SLOT = 2 + 1 / SLOTS_PER_KEPT_ROW
MAX_CHUNK_SIZE = 64  # tokens that linear attention computes in one product
MAX_GROUP_CHUNKS = 32  # that it computes at a time, which bounds the memory of a step
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
    text: Any,
    vision: Any,
    item_bytes: int,
    *,
    slots: int,
    patches: int,
    prefill_tokens: int,
    ranks: int = 1,
    has_kernels: bool = False,
) -> int:
    """Bytes that steps need beside weights, cache and states: of what follows each other the largest, and what stays.

    `text` and `vision` are configs, and `patches` are those of one rank; each rank keeps the features of all.
    `has_kernels` means those of fla-core.
    """
    logits = slots * text.vocab_size
    estimate_pass = partial(estimate_pass_bytes, text, item_bytes, sequences=slots, has_kernels=has_kernels)
    kept_bytes = ranks * estimate_feature_bytes(text, vision, item_bytes, patches=patches)
    kept_bytes += estimate_pass(tokens=slots)  # graphs have their own memory
    kept_bytes += logits * (2 * item_bytes + 4)  # those of a graph, and of the last step, also in float32
    tower_width = max(getattr(vision, "intermediate_size", 0), 4 * getattr(vision, "embed_dim", vision.hidden_size))
    feature_numbers = prefill_tokens * count_feature_layers(vision) * text.hidden_size
    phases = {
        "vision": patches * 7 * tower_width * item_bytes,
        "language": estimate_pass(tokens=prefill_tokens + slots, has_chunks=True)
        + (feature_numbers + logits) * item_bytes,
        "sampling": logits * 16,
    }
    return int(kept_bytes + max(phases.values()))


def estimate_pass_bytes(
    text: Any, item_bytes: int, *, tokens: int, sequences: int, has_kernels: bool, has_chunks: bool = False
) -> int:
    """Bytes of the widest tensors of a pass of the language model, as far as they live at the same time."""
    if experts := getattr(text, "num_experts", 0) and text.num_experts_per_tok:  # a token is copied for each
        mlp_width = experts * (text.moe_intermediate_size + text.hidden_size)
        mlp_width += getattr(text, "shared_expert_intermediate_size", 0)
    else:
        mlp_width = text.intermediate_size
    numbers = tokens * (3 * mlp_width + 8 * text.hidden_size)
    delta_numbers = 0  # of Gated DeltaNet, in float32
    if heads := getattr(text, "linear_num_value_heads", 0):
        key_dim, value_dim = text.linear_key_head_dim, text.linear_value_head_dim
        delta_numbers = sequences * heads * key_dim * value_dim
        if has_kernels:  # they write the states beside the old ones, and all chunks' states in the model's type
            delta_numbers *= 2
            chunks = tokens // MAX_CHUNK_SIZE + sequences
            numbers += heads * tokens * (3 * key_dim + 5 * value_dim + MAX_CHUNK_SIZE)
            numbers += heads * chunks * key_dim * value_dim * has_chunks
        elif has_chunks:  # padding included
            group_tokens = MAX_GROUP_CHUNKS * MAX_CHUNK_SIZE
            delta_numbers += group_tokens * heads * (6 * (key_dim + value_dim) + 4 * MAX_CHUNK_SIZE)
    return int(numbers * item_bytes + 4 * delta_numbers)


def estimate_feature_bytes(text: Any, vision: Any, item_bytes: int, *, patches: int) -> int:
    """Bytes of the features that are kept of the pictures that one rank encodes."""
    kept_tokens = KEPT_CALLS * patches // vision.spatial_merge_size**2
    return int(kept_tokens * count_feature_layers(vision) * text.hidden_size * item_bytes)


def count_feature_layers(vision: Any) -> int:
    return 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())


def choose_state_slots(
    free_bytes: float,
    state_bytes: float,
    slots: int,
    *,
    requested: int | None = None,
    estimate_step: Callable[[int], float] = lambda slots: 0,
) -> int:
    """Slots whose states of linear attention take at most half of the memory, which they share with the KV cache.

    What a step needs of the memory grows with the slots, too.
    """
    fitting = bisect_right(
        range(1, slots + 1), free_bytes, key=lambda count: 2 * count * state_bytes + estimate_step(count)
    )
    if requested is None:
        return max(1, fitting)
    cache_bytes = free_bytes - estimate_step(requested)
    if requested * state_bytes > cache_bytes:
        raise JobError(
            f"engine.slots: the states of {requested} rows need {requested * state_bytes / GB:.1f} GB and "
            f"{max(cache_bytes, 0) / GB:.1f} are free; {fitting} slots fit"
        )
    return requested


def measure_free_cuda_bytes(device: torch.device) -> int:
    import torch

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
