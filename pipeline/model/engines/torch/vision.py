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

from pipeline.model.engines.torch.attention import groups
from pipeline.model.engines.torch.collectives import Ranks
from pipeline.model.engines.torch.scheduler import pack
from pipeline.model.families.base import Family
from pipeline.types import Clip

Grid = tuple[int, int, int]  # patches in time, height, width


@dataclass(frozen=True, slots=True)
class Slice:
    """Some layers of a clip's grid: what is encoded at once."""

    key: str
    pixels: Any  # uint8 [frames, 3, height, width]
    grid: Grid

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, slots=True)
class Sight:
    """What of a family is needed to show pixels to its tower."""

    patch: int
    merge: int
    temporal_patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, family: Family) -> Sight:
        return cls(**{field.name: getattr(family, field.name) for field in fields(cls)})


@dataclass(slots=True)
class Seen:
    """A clip under way: what is still to encode, and how many rows wait for it."""

    todo: list[Slice]
    users: int = 0


class Gallery:
    """The clips of all rows that wait or are being read. Rank 0 keeps the books, every rank what was seen."""

    def __init__(self, tower: Any, sight: Sight, ranks: Ranks, *, flash: bool):
        self.tower = tower
        self.sight = sight
        self.ranks = ranks
        self.flash = flash
        self.clips: dict[str, Seen] = {}
        self.made: dict[str, list[Tensor]] = {}  # [1 + deepstack layers, tokens, hidden] of a clip's slices, in order
        self.patches = 0  # encoded so far

    def enter(self, clip: Clip) -> str:
        """Its key; the same picture has the same."""
        pixels = np.ascontiguousarray(clip.pixels)
        key = hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
        if key not in self.clips:
            frames, _, height, width = pixels.shape
            sight = self.sight
            grid = (-(-frames // sight.temporal_patch), height // sight.patch, width // sight.patch)
            self.clips[key] = Seen([Slice(key, pixels, grid)])
        self.clips[key].users += 1
        return key

    def leave(self, key: str) -> None:
        self.clips[key].users -= 1
        if not self.clips[key].users:
            del self.clips[key]
            with self.ranks.together("drop", (key,)):
                self.drop(key)

    def drop(self, key: str) -> None:
        self.made.pop(key, None)

    def ready(self, keys: Iterable[str]) -> bool:
        return not any(self.clips[key].todo for key in keys)

    def features(self, keys: Iterable[str]) -> Tensor:
        return torch.cat([part for key in keys for part in self.made[key]], 1)

    def next(self, keys: Iterable[str], budget: int) -> list[Slice]:
        """What to encode in one call, of the clips in this order."""
        todo: list[Slice] = []
        for key in dict.fromkeys(keys):
            seen = self.clips[key]
            seen.todo = [part for piece in seen.todo for part in cut(piece, budget, self.sight.temporal_patch)]
            todo += seen.todo
            if sum(piece.patches for piece in todo) >= budget:
                break
        return todo[: pack([piece.patches for piece in todo], budget)]

    def encode(self, pieces: Sequence[Slice]) -> None:
        size = self.ranks.place.size
        parts, owners = divide(pieces, size, self.sight.temporal_patch)
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
        with self.ranks.together("look", *given):
            self.look(parts, owners)
        for piece in pieces:
            self.clips[piece.key].todo.remove(piece)
            self.patches += piece.patches

    @torch.inference_mode()
    def look(self, pieces: Sequence[Slice], owners: Sequence[int]) -> None:
        """Each rank encodes what it owns; every rank has all of it in the end."""
        rank, device = self.ranks.place.rank, next(self.tower.parameters()).device
        own = [piece for piece, owner in zip(pieces, owners, strict=True) if owner == rank]
        made = self.ranks.all_or_none(lambda: encode(self.tower, own, self.sight, flash=self.flash), device)
        by_owner = {rank: iter(made)}
        for other in sorted(set(owners)) if self.ranks.place.size > 1 else ():
            tokens = [self.tokens(piece) for piece, owner in zip(pieces, owners, strict=True) if owner == other]
            block = torch.cat(made, 1) if other == rank else self.blank(sum(tokens), device)
            self.ranks.share(block, other)
            by_owner[other] = iter(torch.split(block, tokens, 1))
        for piece, owner in zip(pieces, owners, strict=True):
            self.made.setdefault(piece.key, []).append(next(by_owner[owner]))

    def tokens(self, piece: Slice) -> int:
        return piece.patches // self.sight.merge**2

    def blank(self, tokens: int, device: torch.device) -> Tensor:
        config = self.tower.config
        layers, width = 1 + len(getattr(config, "deepstack_visual_indexes", ())), widths(config)
        return torch.empty(layers, tokens, width, dtype=self.tower.dtype, device=device)


def widths(config: Any) -> int:
    """Of the embeddings that a tower makes; Qwen2-VL calls it by another name."""
    return int(getattr(config, "out_hidden_size", config.hidden_size))


def divide(pieces: Sequence[Slice], ranks: int, step: int) -> tuple[list[Slice], list[int]]:
    """Slices in order, and the rank of each, so that all have about as many patches: the largest goes first."""
    share = -(-sum(piece.patches for piece in pieces) // ranks)
    parts = [part for piece in pieces for part in cut(piece, share, step)]
    owners, busy = [0] * len(parts), [0] * ranks
    for index in sorted(range(len(parts)), key=lambda index: -parts[index].patches):
        owners[index] = busy.index(min(busy))
        busy[owners[index]] += parts[index].patches
    return parts, owners


def cut(piece: Slice, budget: int, step: int) -> list[Slice]:
    """Slices of whole layers, each within the budget or of one layer."""
    layers, rows, columns = piece.grid
    most = max(1, budget // (rows * columns))
    if layers <= most:
        return [piece]
    parts = [(first, min(most, layers - first)) for first in range(0, layers, most)]
    return [
        Slice(piece.key, piece.pixels[first * step : (first + count) * step], (count, rows, columns))
        for first, count in parts
    ]


@torch.inference_mode()
def encode(tower: Any, pieces: Sequence[Slice], sight: Sight, *, flash: bool) -> list[Tensor]:
    """Embeddings of each piece, deepstack layers after the first."""
    if not pieces:
        return []
    device = next(tower.parameters()).device
    patches = [patchify(torch.from_numpy(piece.pixels).to(device), piece.grid, sight) for piece in pieces]
    grids = torch.tensor([piece.grid for piece in pieces])
    layouts = pack_layouts([layout(piece.grid, tower) for piece in pieces], device, flash=flash)
    out = tower(torch.cat(patches).to(tower.dtype), grid_thw=grids, **layouts)
    features = torch.stack([out.pooler_output, *getattr(out, "deepstack_features", [])])
    return list(torch.split(features, [piece.patches // sight.merge**2 for piece in pieces], 1))


def patchify(pixels: Tensor, grid: Grid, sight: Sight | Family) -> Tensor:
    """uint8 [frames, 3, height, width] -> normalised [patches, values], in the tower's order."""
    (t, h, w), patch, merge, step = grid, sight.patch, sight.merge, sight.temporal_patch
    if missing := t * step - len(pixels):
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    blocks = pixels.view(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3, -1)
    mean, std = (255 * torch.tensor(side, device=pixels.device)[:, None] for side in (sight.mean, sight.std))
    return ((flat.float() - mean) / std).flatten(1)


def layout(grid: Grid, tower: Any) -> dict[str, Tensor]:
    """What a tower derives from a grid, kept for the next picture of that size. All on the CPU."""
    config = tower.config
    window = getattr(config, "window_size", None)
    side = getattr(tower, "num_grid_per_side", None)
    how = getattr(tower, "interpolation_mode", None), getattr(tower, "interpolation_align_corners", None)
    return remembered(grid, config.spatial_merge_size, window and (window, config.patch_size), side and (side, *how))


@lru_cache(maxsize=512)
def remembered(grid: Grid, merge: int, window: Any, learned: Any) -> dict[str, Tensor]:
    from transformers import vision_utils

    grids = torch.tensor([grid])
    made = {"position_ids": vision_utils.get_vision_position_ids(grids, merge)}
    made["lengths"] = torch.full((grid[0],), grid[1] * grid[2])
    if window:
        made["window_index"], ends = vision_utils.get_vision_window_index(grids, merge, *window)
        made["window_lengths"] = ends.diff()
    if learned:
        side, mode, corners = learned
        made["interp_indices"], made["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, num_grid_per_side=side, mode=mode, align_corners=corners, spatial_merge_size=merge
        )
    return made


def pack_layouts(layouts: Sequence[dict[str, Tensor]], device: torch.device, *, flash: bool) -> dict[str, Any]:
    """The layouts of one call, end to end, under the names the towers take them by."""
    packed: dict[str, Any] = {name: torch.cat([one[name] for one in layouts]) for name in layouts[0]}
    if "window_index" in packed:
        merged = [len(one["window_index"]) for one in layouts]
        packed["window_index"] += torch.from_numpy(np.repeat(np.cumsum(merged) - merged, merged))
    lengths = {kind: packed.pop(f"{kind}lengths") for kind in ("", "window_") if f"{kind}lengths" in packed}
    packed |= {f"cu_{kind}seqlens": pad(sizes.cumsum(0), (1, 0)).int() for kind, sizes in lengths.items()}
    packed = {name: part.to(device, non_blocking=True) for name, part in packed.items()}
    packed |= {f"max_{kind}seqlen": int(sizes.max()) for kind, sizes in lengths.items()}
    made = {} if flash else {kind: groups(sizes.numpy(), device) for kind, sizes in lengths.items()}
    return packed | {"segments": {id(packed[f"cu_{kind}seqlens"]): group for kind, group in made.items()}}
