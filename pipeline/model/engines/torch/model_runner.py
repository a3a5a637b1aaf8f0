"""One process of a replica: its share of the model, its cache, and what it saw. Rank 0 is one too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import memory
from pipeline.model.engines.torch.attention import Cache, has_flash
from pipeline.model.engines.torch.collectives import Ranks, connect
from pipeline.model.engines.torch.cuda_graphs import Graphs
from pipeline.model.engines.torch.forward import Forward, decode
from pipeline.model.engines.torch.loaded_model import Loaded
from pipeline.model.engines.torch.memory import Room
from pipeline.model.engines.torch.model_loader import load
from pipeline.model.engines.torch.shard import Place
from pipeline.model.engines.torch.vision import Gallery, Sight
from pipeline.model.engines.torch.worker_group import Crew


@dataclass(frozen=True, slots=True)
class Task:
    """All that a rank is told before it starts."""

    folder: Path
    sight: Sight
    context: int  # the longest row
    device: str  # cpu or cuda
    dtype: str = "auto"
    attention: str = "auto"
    config: Mapping[str, Any] | None = None
    quantize: str | None = None
    compiled: bool = False
    hang_s: float = 600.0
    threads: int = 1
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    rank: int = 0
    size: int = 1

    @property
    def place(self) -> Place:
        return Place(self.rank, self.size)


def load_share(task: Task) -> Loaded:
    device = torch.device(task.device)
    if device.type == "cuda":
        device = torch.device("cuda", task.rank if task.size > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return load(
        task.folder,
        dtype=task.dtype,
        device=device,
        config=task.config,
        quantize=task.quantize,
        place=task.place,
    )


def room(task: Task, loaded: Loaded) -> Room:
    return memory.plan(loaded, context=task.context, ranks=task.size, **task.sizes)


def assemble(task: Task, loaded: Loaded, size: Room, ranks: Ranks) -> tuple[Gallery, Forward]:
    connect(loaded, ranks)
    flash = task.attention != "sdpa" and has_flash(loaded.device, loaded.dtype)
    layers, heads, dim = loaded.cache_shape
    cache = Cache.empty((layers, size.kv_tokens, heads, dim), loaded.dtype, loaded.device)
    gallery = Gallery(loaded.tower, task.sight, ranks, flash=flash)
    run = torch.compile(decode(loaded), dynamic=True) if task.compiled else decode(loaded)
    graphs = Graphs(run, cache, slots=size.slots, context=task.context) if flash else None
    return gallery, Forward(loaded, cache, gallery, graphs, flash=flash)


def lead(task: Task) -> tuple[Loaded, Room, Gallery, Forward]:
    """Rank 0's own share, when all ranks have theirs. The least room of all is everybody's."""
    if task.size == 1:
        loaded, ranks = load_share(task), Ranks()
        size = room(task, loaded)
        return loaded, size, *assemble(task, loaded, size, ranks)
    if task.device.startswith("cuda") and torch.cuda.device_count() < task.size:
        raise JobError(f"model.tensor_parallel: {task.size} and this process has {torch.cuda.device_count()} GPU(s)")
    crew = Crew({field.name: getattr(task, field.name) for field in fields(task)}, task.size)
    try:
        ranks = Ranks(task.place, crew)
        loaded = load_share(task)
        size = Room.least([room(task, loaded), *crew.ready()])
        store = ranks.listen()
        crew.meet(store.port, size)
        ranks.join(store, device=loaded.device, limit_s=task.hang_s)
        return loaded, size, *assemble(task, loaded, size, ranks)
    except BaseException:
        crew.close()
        raise
