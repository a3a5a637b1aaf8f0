"""Computes the features of clips: uint8 pixels become patches on the model's device, then go through the tower.

A clip's grid is cut into slices of whole layers, so that a long video fits the patch budget and several ranks can
share the work. Layers never see each other in these towers, so slices change no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.families.base import Family
from pipeline.model.families.model_architecture import PatchGrid, VisionTower


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The numbers of a family that turn pixels into patches."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_family(cls, family: Family) -> VisionConfig:
        return cls(**{field.name: getattr(family, field.name) for field in fields(cls)})

    def compute_grid(self, pixels_shape: Sequence[int]) -> PatchGrid:
        frames, _, height, width = pixels_shape
        return -(-frames // self.temporal_patch_size), height // self.patch_size, width // self.patch_size


@dataclass(frozen=True, slots=True)
class ClipSlice:
    """Some layers of a clip's grid: what is encoded at once."""

    key: str
    pixels: Any  # uint8 [frames, 3, height, width]; on the way to a rank its place, and None for the other ranks
    grid: PatchGrid

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


AssignedSlice = tuple[ClipSlice, int]  # and the rank that encodes it


def split_slice(clip_slice: ClipSlice, patch_budget: int, frames_per_layer: int) -> list[ClipSlice]:
    """Slices of whole layers, each within the budget or of a single layer."""
    layers, rows, columns = clip_slice.grid
    max_layers = max(1, patch_budget // (rows * columns))
    if layers <= max_layers:
        return [clip_slice]
    parts = []
    for first in range(0, layers, max_layers):
        end = min(first + max_layers, layers)
        pixels = clip_slice.pixels[first * frames_per_layer : end * frames_per_layer]
        parts.append(ClipSlice(clip_slice.key, pixels, (end - first, rows, columns)))
    return parts


def assign_slices(clip_slices: Sequence[ClipSlice], rank_count: int, frames_per_layer: int) -> list[AssignedSlice]:
    """Slices in order, each with the rank that encodes it. The largest is assigned first, to the least loaded rank."""
    share = -(-sum(clip_slice.patches for clip_slice in clip_slices) // rank_count)
    parts = [part for clip_slice in clip_slices for part in split_slice(clip_slice, share, frames_per_layer)]
    owners, loads = [0] * len(parts), [0] * rank_count
    for index in sorted(range(len(parts)), key=lambda index: -parts[index].patches):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += parts[index].patches
    return list(zip(parts, owners, strict=True))


@torch.inference_mode()
def encode_slices(
    vision_tower: VisionTower, clip_slices: Sequence[ClipSlice], vision_config: VisionConfig, *, has_flash: bool
) -> list[Tensor]:
    """Features [feature layers, tokens, width] of each slice, from one call of the tower."""
    if not clip_slices:
        return []
    device = next(vision_tower.module.parameters()).device
    patches = [cut_patches(copy_to_device(part.pixels, device), part.grid, vision_config) for part in clip_slices]
    grids = [part.grid for part in clip_slices]
    layers = vision_tower.encode_patches(
        normalize_patches(torch.cat(patches), vision_config), grids, has_flash=has_flash
    )
    token_counts = [part.patches // vision_config.merge_size**2 for part in clip_slices]
    # copies, because a view would keep the features of the whole call
    return [torch.stack(parts) for parts in zip(*(torch.split(layer, token_counts) for layer in layers), strict=True)]


def patchify(pixels: Tensor, grid: PatchGrid, vision_config: VisionConfig | Family) -> Tensor:
    """uint8 [frames, 3, height, width] becomes normalised [patches, values], in the tower's order."""
    return normalize_patches(cut_patches(pixels, grid, vision_config), vision_config)


def cut_patches(pixels: Tensor, grid: PatchGrid, vision_config: VisionConfig | Family) -> Tensor:
    """uint8 [patches, 3, values]. Patches of one token lie together; the last frame is repeated to fill its layer."""
    layers, rows, columns = grid
    size, merge, depth = vision_config.patch_size, vision_config.merge_size, vision_config.temporal_patch_size
    if missing_frames := layers * depth - len(pixels):
        pixels = torch.cat([pixels, pixels[-1:].expand(missing_frames, -1, -1, -1)])
    blocks = pixels.view(layers, depth, 3, rows // merge, merge, size, columns // merge, merge, size)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(layers * rows * columns, 3, -1)


def normalize_patches(patches: Tensor, vision_config: VisionConfig | Family) -> Tensor:
    mean, std = (
        copy_to_device(255 * np.asarray(values, np.float32)[:, None], patches.device)
        for values in (vision_config.mean, vision_config.std)
    )
    return patches.float().sub_(mean).div_(std).flatten(1)  # in place: fresh memory costs more than the arithmetic
