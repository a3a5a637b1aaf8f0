"""Keeps the features of clips while sequences need them, and encodes many clips in one call of the vision tower.

Clips are keyed by their pixels, so a clip that several sequences show is encoded once. Rank 0 decides what is encoded
and dropped; every rank holds all features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.scheduler import count_fitting
from pipeline.model.engines.torch.vision_encoder import (
    ClipSlice,
    VisionConfig,
    assign_slices,
    encode_slices,
    split_slice,
)
from pipeline.model.families.model_architecture import VisionTower
from pipeline.types import Clip


@dataclass(slots=True)
class CachedClip:
    pending_slices: list[ClipSlice]  # not encoded yet
    user_count: int = 0  # sequences that show it


class VisionCache:
    def __init__(
        self, vision_tower: VisionTower, vision_config: VisionConfig, collectives: Collectives, *, has_flash: bool
    ):
        self.vision_tower = vision_tower
        self.vision_config = vision_config
        self.collectives = collectives
        self.has_flash = has_flash
        self.clips: dict[str, CachedClip] = {}
        self.features_by_clip: dict[str, list[Tensor]] = {}  # of slices in order: [feature layers, tokens, width]
        self.encoded_patches = 0

    def add_clip(self, clip: Clip) -> str:
        """The clip's key, which is the same for the same pixels."""
        pixels = np.ascontiguousarray(clip.pixels)
        key = hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
        if key not in self.clips:
            self.clips[key] = CachedClip([ClipSlice(key, pixels, self.vision_config.compute_grid(pixels.shape))])
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
        return torch.cat([features for key in keys for features in self.features_by_clip[key]], 1)

    def select_slices(self, keys: Iterable[str], patch_budget: int) -> list[ClipSlice]:
        """What to encode in the next call, taken from the clips in this order."""
        selected: list[ClipSlice] = []
        for key in dict.fromkeys(keys):
            cached = self.clips[key]
            cached.pending_slices = [
                part
                for clip_slice in cached.pending_slices
                for part in split_slice(clip_slice, patch_budget, self.vision_config.temporal_patch_size)
            ]
            selected += cached.pending_slices
            if sum(clip_slice.patches for clip_slice in selected) >= patch_budget:
                break
        return selected[: count_fitting([clip_slice.patches for clip_slice in selected], patch_budget)]

    def encode_slices(self, clip_slices: Sequence[ClipSlice]) -> None:
        """Divides the slices between the ranks. Each rank is sent the pixels of its own only."""
        rank_count = self.collectives.tp.size
        parts, owners = assign_slices(clip_slices, rank_count, self.vision_config.temporal_patch_size)

        def without_pixels_of_others(rank: int) -> list[ClipSlice]:
            return [
                part if owner == rank else replace(part, pixels=None) for part, owner in zip(parts, owners, strict=True)
            ]

        worker_arguments = [(without_pixels_of_others(rank), owners) for rank in range(1, rank_count)]
        with self.collectives.run_on_all_ranks("encode_slices", *worker_arguments):
            self.encode_owned_slices(parts, owners)
        for clip_slice in clip_slices:
            self.clips[clip_slice.key].pending_slices.remove(clip_slice)
            self.encoded_patches += clip_slice.patches

    @torch.inference_mode()
    def encode_owned_slices(self, clip_slices: Sequence[ClipSlice], owners: Sequence[int]) -> None:
        """Runs on every rank: encodes the slices that this rank owns and exchanges the features."""
        rank = self.collectives.tp.rank
        owned_slices = [part for part, owner in zip(clip_slices, owners, strict=True) if owner == rank]
        encoded = self.collectives.succeed_or_fail_together(
            lambda: encode_slices(self.vision_tower, owned_slices, self.vision_config, has_flash=self.has_flash),
            self.device,
        )
        for part, features in zip(clip_slices, self.exchange_features(clip_slices, owners, encoded), strict=True):
            self.features_by_clip.setdefault(part.key, []).append(features)

    def exchange_features(
        self, clip_slices: Sequence[ClipSlice], owners: Sequence[int], encoded: list[Tensor]
    ) -> list[Tensor]:
        """The features of all slices in order; each owner broadcasts its own as one block."""
        if self.collectives.tp.size == 1:
            return encoded
        features_by_owner = {}
        for owner in sorted(set(owners)):
            token_counts = [
                part.patches // self.vision_config.merge_size**2
                for part, part_owner in zip(clip_slices, owners, strict=True)
                if part_owner == owner
            ]
            is_mine = owner == self.collectives.tp.rank
            block = torch.cat(encoded, 1) if is_mine else self.allocate_features(sum(token_counts))
            self.collectives.broadcast(block, owner)
            features_by_owner[owner] = iter(torch.split(block, token_counts, 1))
        return [next(features_by_owner[owner]) for owner in owners]

    def allocate_features(self, token_count: int) -> Tensor:
        tower = self.vision_tower
        shape = tower.feature_layers, token_count, tower.feature_width
        return torch.empty(shape, dtype=tower.module.dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        return next(self.vision_tower.module.parameters()).device  # type: ignore[no-any-return]
