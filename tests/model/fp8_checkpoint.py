"""Writes checkpoints with fp8 weights, each with one scale for every block of 128 x 128."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def to_fp8(weight):
    """The weight in fp8, its scales for blocks of 128 x 128, and what the two stand for."""
    *experts, rows, columns = weight.shape
    scale = torch.rand(*experts, -(-rows // 128), -(-columns // 128)) + 0.5
    spread = scale.repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :rows, :columns]
    rounded = (weight / spread).to(torch.float8_e4m3fn)
    return rounded, scale, (rounded.float() * spread).bfloat16().float()


def split_into_fp8(tensors):
    """The tensors as an fp8 checkpoint has them, and the dense weights that they stand for."""
    scaled, dense = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if ".layers." in name and weight.dim() in (2, 3) and "conv1d" not in name:
            scaled[name], scaled[f"{name}_scale_inv"], dense[name] = to_fp8(weight)
    return scaled, dense


def write_fp8_checkpoint(folder: Path, dense: Path) -> dict[str, torch.Tensor]:
    """Rewrites a dense checkpoint in fp8. Returns the rounded weights, dense."""
    folder.mkdir()
    scaled, rounded = split_into_fp8(load_file(dense / "model.safetensors"))
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    for file in dense.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((dense / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIG}))
    return rounded
