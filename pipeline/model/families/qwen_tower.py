"""Calls the vision towers of the Qwen-VL line with many clips at once.

A tower derives positions, windows and interpolation weights from each clip's grid. They are computed here on the CPU
and kept for the next clip of that size, because inside the tower they would stall the device. Attention is packed:
frames never see each other, and most blocks of Qwen2.5-VL see one window at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from pipeline.model.engines.torch.attention import group_segments
from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.families.model_architecture import PatchGrid


@dataclass(frozen=True, slots=True)
class GridSettings:
    """The settings that a tower's inputs depend on, beside the grid."""

    merge_size: int
    patch_size: int
    window_size: int | None  # in pixels; None where no block has windows
    interpolation: tuple[int, str, bool] | None  # side, mode and alignment of a learned grid of positions


@dataclass(frozen=True, slots=True)
class GridInputs:
    """The inputs that a tower derives from one clip's grid."""

    position_ids: NDArray[np.int64]
    frame_lengths: NDArray[np.int64]  # patches of each frame
    window_lengths: NDArray[np.int64] | None = None  # patches of each window
    window_index: NDArray[np.int64] | None = None  # tokens in the order of windows
    interpolation: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # indices and weights


class QwenTower:
    def __init__(self, module: Any):
        self.module, self.config, self.blocks = module, module.config, module.blocks
        self.feature_layers = 1 + len(getattr(self.config, "deepstack_visual_indexes", ()))
        self.feature_width = getattr(self.config, "out_hidden_size", self.config.hidden_size)  # Qwen2-VL has one width
        side = getattr(module, "num_grid_per_side", None)
        self.settings = GridSettings(
            self.config.spatial_merge_size,
            self.config.patch_size,
            getattr(self.config, "window_size", None),
            side and (side, module.interpolation_mode, module.interpolation_align_corners),
        )
        full_blocks = getattr(self.config, "fullatt_block_indexes", range(len(module.blocks)))
        for index, block in enumerate(module.blocks):  # tells `attention.attend` which segments the block sees
            block.attn.segment_kind = "frame" if index in full_blocks else "window"
        use_linear_patch_embedding(module.patch_embed)

    def encode_patches(self, patches: Tensor, grids: Sequence[PatchGrid], *, has_flash: bool) -> list[Tensor]:
        grid_inputs = [compute_grid_inputs(grid, self.settings) for grid in grids]
        arguments = build_call_arguments(grid_inputs, patches.device, has_flash=has_flash)
        out = self.module(patches.to(self.module.dtype), grid_thw=torch.tensor(grids), **arguments)
        return [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]


def use_linear_patch_embedding(patch_embedding: Any) -> None:
    """A convolution whose kernel is the whole patch is a matrix product, and many times faster as one."""
    projection = patch_embedding.proj
    patch_embedding.forward = lambda patches: linear(
        patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias
    )


@lru_cache(maxsize=512)
def compute_grid_inputs(grid: PatchGrid, settings: GridSettings) -> GridInputs:
    from transformers import vision_utils

    grids, merge_size = torch.tensor([grid]), settings.merge_size
    position_ids = vision_utils.get_vision_position_ids(grids, merge_size).numpy()
    frame_lengths = np.full(grid[0], grid[1] * grid[2])
    window_lengths = window_index = interpolation = None
    if settings.window_size:
        index, window_ends = vision_utils.get_vision_window_index(
            grids, merge_size, settings.window_size, settings.patch_size
        )
        window_index, window_lengths = index.numpy(), window_ends.diff().numpy()
    if settings.interpolation:
        side, mode, align_corners = settings.interpolation
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, num_grid_per_side=side, mode=mode, align_corners=align_corners, spatial_merge_size=merge_size
        )
        interpolation = indices.numpy(), weights.numpy()
    return GridInputs(position_ids, frame_lengths, window_lengths, window_index, interpolation)


def build_call_arguments(grid_inputs: Sequence[GridInputs], device: torch.device, *, has_flash: bool) -> dict[str, Any]:
    """The inputs of all clips end to end, under the names of the tower's keyword arguments."""

    def join(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(inputs, field) for inputs in grid_inputs])

    first, lengths = grid_inputs[0], {"frame": join("frame_lengths")}
    arrays = {"position_ids": join("position_ids"), "cu_seqlens": accumulate(lengths["frame"])}
    if first.window_index is not None:
        lengths["window"] = join("window_lengths")
        arrays["cu_window_seqlens"] = accumulate(lengths["window"])
        counts = np.array([len(inputs.window_index) for inputs in grid_inputs])  # type: ignore[arg-type]
        arrays["window_index"] = join("window_index") + np.repeat(counts.cumsum() - counts, counts)
    if first.interpolation is not None:
        for at, name in enumerate(("interp_indices", "interp_weights")):
            parts = [inputs.interpolation[at] for inputs in grid_inputs]  # type: ignore[index]
            arrays[name] = np.concatenate(parts)
    arguments: dict[str, Any] = {name: copy_to_device(array, device) for name, array in arrays.items()}
    for kind, name in (("frame", "max_seqlen"), ("window", "max_window_seqlen")):
        if kind in lengths:
            arguments[name] = int(lengths[kind].max())
    if not has_flash:
        arguments["segments"] = {kind: group_segments(sizes, device) for kind, sizes in lengths.items()}
    return arguments


def accumulate(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """Cumulative lengths from zero, as flash attention takes them."""
    return np.cumsum([0, *lengths]).astype(np.int32)
