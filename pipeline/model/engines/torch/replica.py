"""Starts a replica: one process, or rank 0 and its workers. A rank holds a share of the model and of the KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import memory
from pipeline.model.engines.torch.attention import has_flash
from pipeline.model.engines.torch.collectives import Collectives, connect_shards
from pipeline.model.engines.torch.cuda_graphs import DecodeGraphs
from pipeline.model.engines.torch.int4_linear import MAX_KERNEL_ROWS, Int4Linear
from pipeline.model.engines.torch.kv_cache import KVCache
from pipeline.model.engines.torch.layer_compiler import compile_layers
from pipeline.model.engines.torch.linear_state import LinearStates
from pipeline.model.engines.torch.memory import EngineSizes
from pipeline.model.engines.torch.model_loader import LoadedModel, ModelOutput, load_model
from pipeline.model.engines.torch.shard import TensorParallel
from pipeline.model.engines.torch.step_runner import StepRunner, build_decode_function
from pipeline.model.engines.torch.torch_settings import DEFAULT_HANG_S, DEFAULT_PREFILL_TOKENS
from pipeline.model.engines.torch.vision_cache import VisionCache
from pipeline.model.engines.torch.vision_encoder import VisionConfig
from pipeline.model.engines.torch.worker_group import WorkerGroup


@dataclass(frozen=True, slots=True)
class RankConfig:
    """The configuration that a rank gets before it starts."""

    folder: Path
    vision_config: VisionConfig
    context_length: int
    device: str  # cpu or cuda
    config: Mapping[str, Any] | None = None  # config.json with the job's changes
    dtype: str = "auto"
    attention: str = "auto"
    quantize: str | None = None
    adapter: Path | None = None
    output: ModelOutput = "logits"  # "states": the model has no head, and gives vectors only
    reuse_prefixes: bool = True  # compute what prompts begin with only once
    graphs: bool = True  # replay decode steps as CUDA graphs
    compile: bool = False  # compile the layers of tower and language model
    hang_s: float = DEFAULT_HANG_S
    slots: int | None = None  # sizes that are None follow from the memory
    kv_tokens: int | None = None
    patches: int | None = None
    prefill_tokens: int | None = None
    threads: int = 1
    rank: int = 0
    tensor_parallel: int = 1  # the number of ranks

    @property
    def tp(self) -> TensorParallel:
        return TensorParallel(self.rank, self.tensor_parallel)


def start_replica(rank_config: RankConfig) -> tuple[LoadedModel, EngineSizes, VisionCache, StepRunner]:
    """Load the model on all ranks and return rank 0's parts of it. All ranks use the smallest sizes of any."""
    rank_count = rank_config.tensor_parallel
    gpu_count = torch.cuda.device_count()
    if rank_count > 1 and rank_config.device.startswith("cuda") and gpu_count < rank_count:
        raise JobError(f"model.tensor_parallel: {rank_count} and this process has {gpu_count} GPU(s)")
    if rank_config.device.startswith("cuda"):
        memory.use_expandable_segments()  # workers inherit it
    worker_configs = [replace(rank_config, rank=rank) for rank in range(1, rank_count)]
    worker_group = WorkerGroup(worker_configs) if worker_configs else None
    collectives = Collectives(rank_config.tp, worker_group)
    try:
        loaded = load_rank_model(rank_config)
        sizes = choose_sizes(rank_config, loaded)
        if worker_group is not None:
            sizes = EngineSizes.take_smallest([sizes, *worker_group.wait_until_loaded()])
            store = collectives.open_store()
            worker_group.send_rendezvous(store.port, sizes)
            collectives.join_process_group(store, device=loaded.device, timeout_s=rank_config.hang_s)
        return loaded, sizes, *build_step_runner(rank_config, loaded, sizes, collectives)
    except BaseException:
        collectives.close()
        raise


def load_rank_model(rank_config: RankConfig) -> LoadedModel:
    device = torch.device(rank_config.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank_config.rank if rank_config.tensor_parallel > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return load_model(
        rank_config.folder,
        rank_config.config,
        dtype=rank_config.dtype,
        device=device,
        quantize=rank_config.quantize,
        adapter=rank_config.adapter,
        output=rank_config.output,
        tp=rank_config.tp,
    )


def choose_sizes(rank_config: RankConfig, loaded: LoadedModel) -> EngineSizes:
    """Sizes that were not requested follow from the memory that this rank has."""
    device, rank_count, item_bytes = loaded.device, rank_config.tensor_parallel, loaded.dtype.itemsize
    slots = rank_config.slots or memory.DEFAULT_SLOTS_BY_DEVICE[device.type]
    if not rank_config.slots and any(isinstance(module, Int4Linear) for module in loaded.language_model.modules()):
        slots = min(
            slots, MAX_KERNEL_ROWS[device.type]
        )  # more rows would go through dense copies, at a third the speed
    patches = rank_config.patches or memory.DEFAULT_PATCHES_BY_DEVICE[device.type] * rank_count
    prefill_tokens = rank_config.prefill_tokens or DEFAULT_PREFILL_TOKENS
    kv_tokens = rank_config.kv_tokens
    if kv_tokens is None or loaded.state_shape is not None:
        limits = {"patches": patches // rank_count, "prefill_tokens": prefill_tokens, "ranks": rank_count}
        free_bytes, estimate_step = measure_memory(loaded, **limits)
        state_bytes = loaded.state_shape.count_bytes(item_bytes) if loaded.state_shape else 0
        if state_bytes:
            slots = memory.choose_state_slots(
                free_bytes, state_bytes, slots, requested=rank_config.slots, estimate_step=estimate_step
            )
        cache_bytes = free_bytes - estimate_step(slots) - slots * state_bytes
    if kv_tokens is None:
        token_bytes = 2 * math.prod(loaded.cache_shape) * item_bytes  # keys and values
        kv_tokens = min(max(cache_bytes // token_bytes, 1), slots * rank_config.context_length)
    return EngineSizes(slots, kv_tokens, patches, prefill_tokens)


def measure_memory(loaded: LoadedModel, **limits: int) -> tuple[int, Callable[[int], int]]:
    """Free bytes for steps, states and cache of this rank, and what a step of so many slots needs of them."""
    if loaded.device.type == "cpu":  # a part of what is free, and steps have the rest
        return memory.measure_cpu_cache_bytes() // limits["ranks"], lambda slots: 0
    configs = loaded.language_model.config, loaded.vision_tower.config
    has_kernels = bool(loaded.state_shape and loaded.state_shape.has_kernels)
    return memory.measure_free_cuda_bytes(loaded.device), lambda slots: memory.estimate_step_bytes(
        *configs, loaded.dtype.itemsize, slots=slots, has_kernels=has_kernels, **limits
    )


def build_step_runner(
    rank_config: RankConfig, loaded: LoadedModel, sizes: EngineSizes, collectives: Collectives
) -> tuple[VisionCache, StepRunner]:
    connect_shards(loaded, collectives)
    if rank_config.compile:
        compile_layers(loaded, collectives)
    use_flash = rank_config.attention != "sdpa" and has_flash(loaded.device, loaded.dtype)
    layers, heads, dim = loaded.cache_shape
    cache = KVCache.allocate((layers, sizes.kv_tokens, heads, dim), loaded.dtype, loaded.device)
    states = None
    if loaded.state_shape is not None:
        states = LinearStates.allocate(loaded.state_shape, sizes.slots, loaded.dtype, loaded.device)
    vision_cache = VisionCache(
        loaded.vision_tower,
        rank_config.vision_config,
        collectives,
        has_flash=use_flash,
        max_kept_patches=memory.KEPT_CALLS * sizes.patches,
    )
    decode = build_decode_function(loaded)
    graphs = None
    if use_flash and rank_config.graphs:
        graphs = DecodeGraphs(decode, cache, states, slots=sizes.slots, context_length=rank_config.context_length)
    return vision_cache, StepRunner(loaded, cache, vision_cache, graphs, use_flash, states, sizes.slots)
