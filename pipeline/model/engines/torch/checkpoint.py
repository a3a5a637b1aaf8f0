"""A checkpoint's files -> its weights, or parts of them, under the names the model has for them.

Only what is asked for is read from disk. Names follow the checkpoint's age: before transformers 4.52
there was no `model.visual` and no `model.language_model`. A mixture's experts come in two layouts, told
by their shape. Weights of eight bits are made whole as they are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import JobError
from pipeline.model.engines.torch.shard import WeightShard

INDEX_FILE = "model.safetensors.index.json"
FP8_BLOCK_SIZE = 128  # weights of eight bits in a row or column that share a scale
MODEL_PREFIXES = ("visual.", "language_model.", "lm_head.")


def to_parameter_name(name: str) -> str:
    """What the model calls a weight that a file calls so.

    >>> model_name("model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    >>> model_name("visual.merger.ln_q.weight")
    'model.visual.merger.ln_q.weight'
    """
    bare = name.removeprefix("model.")
    if bare.startswith("lm_head."):
        return bare
    return f"model.{bare}" if bare.startswith(MODEL_PREFIXES) else f"model.language_model.{bare}"


class Checkpoint:
    """The files of a checkpoint, open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stored_tensors: dict[str, tuple[Any, str]] = {}
        for path in list_weight_files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise JobError(f"model.weights: {path} cannot be read: {error}") from error
            self.stored_tensors |= {to_parameter_name(name): (file, name) for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: object) -> bool:
        return name in self.stored_tensors

    def detect_dtype(self) -> torch.dtype:
        """Of the first weight that is a number as it stands."""
        there = (
            self.read_weight(name, WeightShard(0, (0, 1))).dtype
            for name in self.stored_tensors
            if name.endswith("norm.weight")
        )
        return next(there)

    def get_shape(self, name: str) -> list[int]:
        file, own = self.stored_tensors[name]
        return list(file.get_slice(own).get_shape())

    def read_weight(
        self, name: str, weight_shard: WeightShard | None = None, *, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """`shape` is that of the whole weight in the model, where the file may have it turned."""
        file, own = self.stored_tensors[name]
        turned = shape is not None and len(shape) == 3 and self.get_shape(name) != list(shape)
        if weight_shard is None:
            taken: tuple[slice, ...] = (slice(None),)
        else:
            dim = {1: 2, 2: 1}.get(weight_shard.dim, weight_shard.dim) if turned else weight_shard.dim
            taken = (*[slice(None)] * dim, slice(*weight_shard.span))
        weight: Tensor = file.get_slice(own)[taken]
        if f"{name}_scale_inv" in self.stored_tensors:
            weight = (weight.float() * self.read_scale(f"{name}_scale_inv", self.get_shape(name))[taken]).bfloat16()
        return weight.transpose(1, 2) if turned else weight

    def read_scale(self, name: str, weight_shape: list[int]) -> Tensor:
        """One for each weight, of one for each block of them."""
        scale = self.read_weight(name)
        for dim, length in enumerate(weight_shape):
            if scale.shape[dim] != length:
                scale = scale.repeat_interleave(FP8_BLOCK_SIZE, dim).narrow(dim, 0, length)
        return scale.float()


def list_weight_files(folder: Path) -> list[Path]:
    """Those that the index names, where there is one: a folder may hold the weights twice."""
    if (folder / INDEX_FILE).is_file():
        said = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(said.values()))]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise JobError(f"model.weights: there is no *.safetensors in {folder}")
    return found
