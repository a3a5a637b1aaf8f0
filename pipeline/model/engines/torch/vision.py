"""Clips -> the embeddings that stand for their pad tokens, many clips in one call of the vision tower.

Pixels come as uint8 and are normalised and cut into patches on the model's device. Frames never see
each other in these towers, so a long video is encoded in slices that fit the patch budget, and a
clip that several rows show is encoded once and kept until the last of them has read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.model.engines.torch.attention import group_segments
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.scheduler import count_fitting
from pipeline.model.families.base import Family
from pipeline.types import Clip

PatchGrid = tuple[int, int, int]  # patches in time, height, width


@dataclass(frozen=True, slots=True)
class ClipSlice:
    """Some layers of a clip's grid: what is encoded at once."""

    key: str
    pixels: Any  # uint8 [frames, 3, height, width]
    grid: PatchGrid

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What of a family is needed to show pixels to its tower."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_family(cls, family: Family) -> VisionConfig:
        return cls(**{field.name: getattr(family, field.name) for field in fields(cls)})


@dataclass(slots=True)
class CachedClip:
    """A clip under way: what is still to encode, and how many rows wait for it."""

    pending_slices: list[ClipSlice]
    user_count: int = 0


class VisionCache:
    """The clips of all rows that wait or are being read. Rank 0 keeps the books, every rank what was seen."""

    def __init__(self, vision_tower: Any, vision_config: VisionConfig, collectives: Collectives, *, has_flash: bool):
        self.vision_tower = vision_tower
        self.vision_config = vision_config
        self.collectives = collectives
        self.has_flash = has_flash
        self.clips: dict[str, CachedClip] = {}
        self.features_by_clip: dict[
            str, list[Tensor]
        ] = {}  # [1 + deepstack layers, tokens, hidden] of a clip's slices, in order
        self.encoded_patches = 0  # encoded so far

    def add_clip(self, clip: Clip) -> str:
        """Its key; the same picture has the same."""
        pixels = np.ascontiguousarray(clip.pixels)
        key = hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
        if key not in self.clips:
            frames, _, height, width = pixels.shape
            sight = self.vision_config
            grid = (-(-frames // sight.temporal_patch_size), height // sight.patch_size, width // sight.patch_size)
            self.clips[key] = CachedClip([ClipSlice(key, pixels, grid)])
        self.clips[key].user_count += 1
        return key

    def release_clip(self, key: str) -> None:
        self.clips[key].user_count -= 1
        if not self.clips[key].user_count:
            del self.clips[key]
            with self.collectives.run_on_all_ranks("drop_features", (key,)):
                self.drop_features(key)

    def drop_features(self, key: str) -> None:
        self.features_by_clip.pop(key, None)

    def is_encoded(self, keys: Iterable[str]) -> bool:
        return not any(self.clips[key].pending_slices for key in keys)

    def join_features(self, keys: Iterable[str]) -> Tensor:
        return torch.cat([part for key in keys for part in self.features_by_clip[key]], 1)

    def select_slices(self, keys: Iterable[str], patch_budget: int) -> list[ClipSlice]:
        """What to encode in one call, of the clips in this order."""
        todo: list[ClipSlice] = []
        for key in dict.fromkeys(keys):
            seen = self.clips[key]
            seen.pending_slices = [
                part
                for piece in seen.pending_slices
                for part in split_slice(piece, patch_budget, self.vision_config.temporal_patch_size)
            ]
            todo += seen.pending_slices
            if sum(piece.patches for piece in todo) >= patch_budget:
                break
        return todo[: count_fitting([piece.patches for piece in todo], patch_budget)]

    def encode_slices(self, clip_slices: Sequence[ClipSlice]) -> None:
        size = self.collectives.tp.size
        parts, owners = assign_slices(clip_slices, size, self.vision_config.temporal_patch_size)
        given = [
            (
                [
                    part if owner == rank else replace(part, pixels=None)
                    for part, owner in zip(parts, owners, strict=True)
                ],
                owners,
            )
            for rank in range(1, size)
        ]
        with self.collectives.run_on_all_ranks("encode_slices", *given):
            self.encode_owned_slices(parts, owners)
        for piece in clip_slices:
            self.clips[piece.key].pending_slices.remove(piece)
            self.encoded_patches += piece.patches

    @torch.inference_mode()
    def encode_owned_slices(self, clip_slices: Sequence[ClipSlice], owners: Sequence[int]) -> None:
        """Each rank encodes what it owns; every rank has all of it in the end."""
        rank, device = self.collectives.tp.rank, next(self.vision_tower.parameters()).device
        own = [piece for piece, owner in zip(clip_slices, owners, strict=True) if owner == rank]
        made = self.collectives.succeed_or_fail_together(
            lambda: encode_slices(self.vision_tower, own, self.vision_config, has_flash=self.has_flash), device
        )
        by_owner = {rank: iter(made)}
        for other in sorted(set(owners)) if self.collectives.tp.size > 1 else ():
            tokens = [
                self.count_tokens(piece) for piece, owner in zip(clip_slices, owners, strict=True) if owner == other
            ]
            block = torch.cat(made, 1) if other == rank else self.allocate_features(sum(tokens), device)
            self.collectives.broadcast(block, other)
            by_owner[other] = iter(torch.split(block, tokens, 1))
        for piece, owner in zip(clip_slices, owners, strict=True):
            self.features_by_clip.setdefault(piece.key, []).append(next(by_owner[owner]))

    def count_tokens(self, clip_slice: ClipSlice) -> int:
        return clip_slice.patches // self.vision_config.merge_size**2

    def allocate_features(self, token_count: int, device: torch.device) -> Tensor:
        config = self.vision_tower.config
        layers, width = 1 + len(getattr(config, "deepstack_visual_indexes", ())), get_embedding_width(config)
        return torch.empty(layers, token_count, width, dtype=self.vision_tower.dtype, device=device)


def get_embedding_width(tower_config: Any) -> int:
    """Of the embeddings that a tower makes; Qwen2-VL calls it by another name."""
    return int(getattr(tower_config, "out_hidden_size", tower_config.hidden_size))


def assign_slices(
    clip_slices: Sequence[ClipSlice], rank_count: int, frames_per_layer: int
) -> tuple[list[ClipSlice], list[int]]:
    """Slices in order, and the rank of each, so that all have about as many patches: the largest goes first."""
    share = -(-sum(piece.patches for piece in clip_slices) // rank_count)
    parts = [part for piece in clip_slices for part in split_slice(piece, share, frames_per_layer)]
    owners, busy = [0] * len(parts), [0] * rank_count
    for index in sorted(range(len(parts)), key=lambda index: -parts[index].patches):
        owners[index] = busy.index(min(busy))
        busy[owners[index]] += parts[index].patches
    return parts, owners


def split_slice(clip_slice: ClipSlice, patch_budget: int, frames_per_layer: int) -> list[ClipSlice]:
    """Slices of whole layers, each within the budget or of one layer."""
    layers, rows, columns = clip_slice.grid
    most = max(1, patch_budget // (rows * columns))
    if layers <= most:
        return [clip_slice]
    parts = [(first, min(most, layers - first)) for first in range(0, layers, most)]
    return [
        ClipSlice(
            clip_slice.key,
            clip_slice.pixels[first * frames_per_layer : (first + count) * frames_per_layer],
            (count, rows, columns),
        )
        for first, count in parts
    ]


@torch.inference_mode()
def encode_slices(
    vision_tower: Any, clip_slices: Sequence[ClipSlice], vision_config: VisionConfig, *, has_flash: bool
) -> list[Tensor]:
    """Embeddings of each piece, deepstack layers after the first."""
    if not clip_slices:
        return []
    device = next(vision_tower.parameters()).device
    patches = [patchify(torch.from_numpy(piece.pixels).to(device), piece.grid, vision_config) for piece in clip_slices]
    grids = torch.tensor([piece.grid for piece in clip_slices])
    layouts = join_tower_inputs(
        [build_tower_inputs(piece.grid, vision_tower) for piece in clip_slices], device, has_flash=has_flash
    )
    out = vision_tower(torch.cat(patches).to(vision_tower.dtype), grid_thw=grids, **layouts)
    features = torch.stack([out.pooler_output, *getattr(out, "deepstack_features", [])])
    return list(torch.split(features, [piece.patches // vision_config.merge_size**2 for piece in clip_slices], 1))


def patchify(pixels: Tensor, grid: PatchGrid, vision_config: VisionConfig | Family) -> Tensor:
    """uint8 [frames, 3, height, width] -> normalised [patches, values], in the tower's order."""
    (t, h, w), patch, merge, step = (
        grid,
        vision_config.patch_size,
        vision_config.merge_size,
        vision_config.temporal_patch_size,
    )
    if missing := t * step - len(pixels):
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    blocks = pixels.view(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3, -1)
    mean, std = (
        255 * torch.tensor(side, device=pixels.device)[:, None] for side in (vision_config.mean, vision_config.std)
    )
    return ((flat.float() - mean) / std).flatten(1)


def build_tower_inputs(grid: PatchGrid, vision_tower: Any) -> dict[str, Tensor]:
    """What a tower derives from a grid, kept for the next picture of that size. All on the CPU."""
    config = vision_tower.config
    window = getattr(config, "window_size", None)
    side = getattr(vision_tower, "num_grid_per_side", None)
    how = getattr(vision_tower, "interpolation_mode", None), getattr(vision_tower, "interpolation_align_corners", None)
    return compute_tower_inputs(
        grid, config.spatial_merge_size, window and (window, config.patch_size), side and (side, *how)
    )


@lru_cache(maxsize=512)
def compute_tower_inputs(grid: PatchGrid, merge_size: int, window_sizes: Any, position_grid: Any) -> dict[str, Tensor]:
    from transformers import vision_utils

    grids = torch.tensor([grid])
    made = {"position_ids": vision_utils.get_vision_position_ids(grids, merge_size)}
    made["lengths"] = torch.full((grid[0],), grid[1] * grid[2])
    if window_sizes:
        made["window_index"], ends = vision_utils.get_vision_window_index(grids, merge_size, *window_sizes)
        made["window_lengths"] = ends.diff()
    if position_grid:
        side, mode, corners = position_grid
        made["interp_indices"], made["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, num_grid_per_side=side, mode=mode, align_corners=corners, spatial_merge_size=merge_size
        )
    return made


def join_tower_inputs(
    grid_inputs: Sequence[dict[str, Tensor]], device: torch.device, *, has_flash: bool
) -> dict[str, Any]:
    """The layouts of one call, end to end, under the names the towers take them by."""
    packed: dict[str, Any] = {name: torch.cat([one[name] for one in grid_inputs]) for name in grid_inputs[0]}
    if "window_index" in packed:
        merged = [len(one["window_index"]) for one in grid_inputs]
        packed["window_index"] += torch.from_numpy(np.repeat(np.cumsum(merged) - merged, merged))
    lengths = {kind: packed.pop(f"{kind}lengths") for kind in ("", "window_") if f"{kind}lengths" in packed}
    packed |= {f"cu_{kind}seqlens": pad(sizes.cumsum(0), (1, 0)).int() for kind, sizes in lengths.items()}
    packed = {name: part.to(device, non_blocking=True) for name, part in packed.items()}
    packed |= {f"max_{kind}seqlen": int(sizes.max()) for kind, sizes in lengths.items()}
    made = {} if has_flash else {kind: group_segments(sizes.numpy(), device) for kind, sizes in lengths.items()}
    return packed | {"segments": {id(packed[f"cu_{kind}seqlens"]): group for kind, group in made.items()}}
