"""Reads weights, or parts of them, from a checkpoint's files under the names that the model has for them.

Only the bytes of the requested part are read. Storage formats are converted on the way: a mixture's experts may be
stored transposed, which their shape shows, or one by one; and fp8 weights are multiplied by their scales. An
adapter is merged here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import JobError
from pipeline.model.engines.torch.adapter import Adapter
from pipeline.model.engines.torch.shard import WeightShard
from pipeline.model.families.model_architecture import ModelArchitecture

INDEX_FILE = "model.safetensors.index.json"
FP8_BLOCK_SIZE = 128  # rows or columns of fp8 weights that share a scale
EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # where experts lie one by one


class Checkpoint:
    """The open weight files of a checkpoint."""

    def __init__(self, folder: Path, architecture: ModelArchitecture, adapter: Adapter | None = None):
        self.folder = folder
        self.adapter = adapter
        self.stored_tensors: dict[str, tuple[Any, str]] = {}  # by parameter name: the file, and the name in it
        for path in list_weight_files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise JobError(f"model.weights: {path} cannot be read: {error}") from error
            for stored_name in file.keys():  # noqa: SIM118
                self.stored_tensors[architecture.to_parameter_name(stored_name)] = file, stored_name

    def __contains__(self, name: object) -> bool:
        return name in self.stored_tensors or self.has_separate_experts(name)

    def has_separate_experts(self, name: object) -> bool:
        owner, _, kind = str(name).rpartition(".")
        return kind in EXPERT_PARTS and f"{owner}.0.{EXPERT_PARTS[kind][0]}.weight" in self.stored_tensors

    def detect_dtype(self) -> torch.dtype:
        """The dtype of the first norm, because norms are never quantised."""
        name = next(name for name in self.stored_tensors if name.endswith("norm.weight"))
        return self.read_weight(name, WeightShard(0, (0, 1))).dtype

    def get_shape(self, name: str) -> list[int]:
        file, stored_name = self.stored_tensors[name]
        return list(file.get_slice(stored_name).get_shape())

    def read_weight(
        self, name: str, weight_shard: WeightShard | None = None, *, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """`shape` is that of the whole weight in the model; it shows whether the file has it transposed."""
        if shape is not None and name not in self.stored_tensors:
            return self.read_separate_experts(name, weight_shard.span if weight_shard else (0, shape[0]))
        if weight_shard is not None and weight_shard.further_spans:
            parts = [self.read_weight(name, part, shape=shape) for part in weight_shard.split()]
            return torch.cat(parts, weight_shard.dim)
        file, stored_name = self.stored_tensors[name]
        is_transposed = shape is not None and len(shape) == 3 and self.get_shape(name) != list(shape)
        index: tuple[slice, ...] = (slice(None),)
        if weight_shard is not None:
            dim = {1: 2, 2: 1}.get(weight_shard.dim, weight_shard.dim) if is_transposed else weight_shard.dim
            index = (*[slice(None)] * dim, slice(*weight_shard.span))
        weight: Tensor = file.get_slice(stored_name)[index]
        if f"{name}_scale_inv" in self.stored_tensors:
            weight = (weight.float() * self.read_fp8_scale(f"{name}_scale_inv", self.get_shape(name))[index]).bfloat16()
        if self.adapter is not None:
            weight = self.adapter.merge(name, weight, index)
        return weight.transpose(1, 2) if is_transposed else weight

    def read_separate_experts(self, name: str, span: tuple[int, int]) -> Tensor:
        """Some experts of a layer as one weight [experts, out, in]."""
        owner, _, kind = name.rpartition(".")
        return torch.stack(
            [
                torch.cat([self.read_weight(f"{owner}.{expert}.{part}.weight") for part in EXPERT_PARTS[kind]])
                for expert in range(*span)
            ]
        )

    def read_fp8_scale(self, name: str, weight_shape: list[int]) -> Tensor:
        """One scale for each weight, repeated from one scale for each block of weights."""
        scale = self.read_weight(name)
        for dim, length in enumerate(weight_shape):
            if scale.shape[dim] != length:
                scale = scale.repeat_interleave(FP8_BLOCK_SIZE, dim).narrow(dim, 0, length)
        return scale.float()


def list_weight_files(folder: Path) -> list[Path]:
    """The files that the index names, where there is an index: a folder may hold the weights twice."""
    if (folder / INDEX_FILE).is_file():
        weight_map = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(weight_map.values()))]
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise JobError(f"model.weights: there is no *.safetensors in {folder}")
    return paths
