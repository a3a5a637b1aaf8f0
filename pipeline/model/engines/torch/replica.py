"""Starts a replica: one process, or rank 0 and its workers. A rank holds a share of the model and of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import memory
from pipeline.model.engines.torch.attention import has_flash
from pipeline.model.engines.torch.collectives import Collectives, connect_shards
from pipeline.model.engines.torch.cuda_graphs import DecodeGraphs
from pipeline.model.engines.torch.kv_cache import KVCache
from pipeline.model.engines.torch.loaded_model import LoadedModel
from pipeline.model.engines.torch.memory import EngineSizes
from pipeline.model.engines.torch.model_loader import load_model
from pipeline.model.engines.torch.shard import TensorParallel
from pipeline.model.engines.torch.step_runner import StepRunner, build_decode_function
from pipeline.model.engines.torch.vision_cache import VisionCache
from pipeline.model.engines.torch.vision_encoder import VisionConfig
from pipeline.model.engines.torch.worker_group import WorkerGroup


@dataclass(frozen=True, slots=True)
class RankConfig:
    """All that a rank is told before it starts."""

    folder: Path
    vision_config: VisionConfig
    context_length: int
    device: str  # cpu or cuda
    dtype: str = "auto"
    attention: str = "auto"
    model_config: Mapping[str, Any] | None = None
    quantize: str | None = None
    compiled: bool = False
    hang_s: float = 600.0
    threads: int = 1
    requested_sizes: Mapping[str, int | None] = field(default_factory=dict)
    rank: int = 0
    size: int = 1

    @property
    def tp(self) -> TensorParallel:
        return TensorParallel(self.rank, self.size)


def start_replica(rank_config: RankConfig) -> tuple[LoadedModel, EngineSizes, VisionCache, StepRunner]:
    """Load the model on all ranks and return rank 0's parts of it. All ranks use the smallest sizes of any."""
    if rank_config.size == 1:
        loaded = load_rank_model(rank_config)
        sizes = choose_rank_sizes(rank_config, loaded)
        return loaded, sizes, *build_step_runner(rank_config, loaded, sizes, Collectives())
    if rank_config.device.startswith("cuda") and torch.cuda.device_count() < rank_config.size:
        raise JobError(
            f"model.tensor_parallel: {rank_config.size} and this process has {torch.cuda.device_count()} GPU(s)"
        )
    values = {field.name: getattr(rank_config, field.name) for field in fields(rank_config)}
    worker_group = WorkerGroup(values, rank_config.size)
    try:
        collectives = Collectives(rank_config.tp, worker_group)
        loaded = load_rank_model(rank_config)
        own_sizes = choose_rank_sizes(rank_config, loaded)
        sizes = EngineSizes.take_smallest([own_sizes, *worker_group.wait_until_loaded()])
        store = collectives.open_store()
        worker_group.send_rendezvous(store.port, sizes)
        collectives.join_process_group(store, device=loaded.device, timeout_s=rank_config.hang_s)
        return loaded, sizes, *build_step_runner(rank_config, loaded, sizes, collectives)
    except BaseException:
        worker_group.close()
        raise


def load_rank_model(rank_config: RankConfig) -> LoadedModel:
    device = torch.device(rank_config.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank_config.rank if rank_config.size > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return load_model(
        rank_config.folder,
        dtype=rank_config.dtype,
        device=device,
        config=rank_config.model_config,
        quantize=rank_config.quantize,
        tp=rank_config.tp,
    )


def choose_rank_sizes(rank_config: RankConfig, loaded: LoadedModel) -> EngineSizes:
    return memory.choose_sizes(
        loaded, context_length=rank_config.context_length, rank_count=rank_config.size, **rank_config.requested_sizes
    )


def build_step_runner(
    rank_config: RankConfig, loaded: LoadedModel, sizes: EngineSizes, collectives: Collectives
) -> tuple[VisionCache, StepRunner]:
    connect_shards(loaded, collectives)
    use_flash = rank_config.attention != "sdpa" and has_flash(loaded.device, loaded.dtype)
    layers, heads, dim = loaded.cache_shape
    cache = KVCache.allocate((layers, sizes.kv_tokens, heads, dim), loaded.dtype, loaded.device)
    vision_cache = VisionCache(loaded.vision_tower, rank_config.vision_config, collectives, has_flash=use_flash)
    decode = build_decode_function(loaded)
    if rank_config.compiled:
        decode = torch.compile(decode, dynamic=True)
    graphs = None
    if use_flash:
        graphs = DecodeGraphs(decode, cache, slots=sizes.slots, context_length=rank_config.context_length)
    return vision_cache, StepRunner(loaded, cache, vision_cache, graphs, has_flash=use_flash)
