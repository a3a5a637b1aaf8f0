"""Keeps the features of clips while sequences need them, and encodes many clips in one call of the vision tower.

Clips are keyed by their pixels, so a clip that several sequences show is encoded once. Rank 0 decides what is encoded
and dropped; every rank holds all features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.pixel_key import compute_pixel_key
from pipeline.model.engines.torch import vision_encoder
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.scheduler import count_fitting
from pipeline.model.engines.torch.shared_pixels import share_pixels
from pipeline.model.engines.torch.vision_encoder import AssignedSlice, ClipSlice, VisionConfig, encode_slices
from pipeline.model.families.model_architecture import VisionTower
from pipeline.types import Clip


@dataclass(slots=True)
class CachedClip:
    pending_slices: list[ClipSlice]  # not encoded yet
    user_count: int = 0  # sequences that show it


class VisionCache:
    def __init__(
        self,
        vision_tower: VisionTower,
        vision_config: VisionConfig,
        collectives: Collectives,
        *,
        has_flash: bool,
        max_kept_patches: int,
    ):
        self.vision_tower = vision_tower
        self.vision_config = vision_config
        self.device = next(vision_tower.module.parameters()).device
        self.collectives = collectives
        self.has_flash = has_flash
        self.max_kept_patches = max_kept_patches  # more only for a sequence that needs them itself
        self.clips: dict[str, CachedClip] = {}
        self.features_by_clip: dict[str, list[Tensor]] = {}  # of slices in order: [feature layers, tokens, width]
        self.encoded_patches = 0

    def add_clip(self, clip: Clip) -> str:
        """The clip's key, which is the same for the same pixels."""
        key = compute_pixel_key(clip)
        if key not in self.clips:
            pixels = np.ascontiguousarray(clip.pixels)
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

    def has_room(self, patches: int) -> bool:
        """Whether the features of so many patches more may be kept."""
        kept_tokens = sum(part.shape[1] for part in chain.from_iterable(self.features_by_clip.values()))
        return kept_tokens * self.vision_config.merge_size**2 + patches <= self.max_kept_patches

    def select_features(self, keys: Iterable[str], first: int, end: int) -> list[Tensor]:
        """Views of the features of these tokens of the clips: [feature layers, tokens, width] each."""
        selected = []
        for features in chain.from_iterable(self.features_by_clip[key] for key in keys):
            tokens = features.shape[1]
            if first < tokens and end > 0:
                selected.append(features[:, max(first, 0) : end])
            first, end = first - tokens, end - tokens
        return selected

    def select_slices(self, keys: Iterable[str], patch_budget: int) -> list[ClipSlice]:
        """The slices to encode in the next call, taken from the clips in this order."""
        selected: list[ClipSlice] = []
        for key in dict.fromkeys(keys):
            cached = self.clips[key]
            cached.pending_slices = [
                part
                for clip_slice in cached.pending_slices
                for part in vision_encoder.split_slice(clip_slice, patch_budget, self.vision_config.temporal_patch_size)
            ]
            selected += cached.pending_slices
            if sum(clip_slice.patches for clip_slice in selected) >= patch_budget:
                break
        return selected[: count_fitting([clip_slice.patches for clip_slice in selected], patch_budget)]

    def encode_slices(self, clip_slices: Sequence[ClipSlice]) -> None:
        """Divides the slices between the ranks. Each rank is sent the pixels of its own only."""
        rank_count, worker_group = self.collectives.tp.size, self.collectives.worker_group
        assigned = vision_encoder.assign_slices(clip_slices, rank_count, self.vision_config.temporal_patch_size)
        worker_arguments = (
            []
            if worker_group is None
            else [
                (share_pixels(assigned, rank, shared_pixels),)
                for rank, shared_pixels in enumerate(worker_group.shared_pixels, 1)
            ]
        )
        with self.collectives.run_on_all_ranks("encode_slices", *worker_arguments):
            self.encode_owned_slices(assigned)
        for clip_slice in clip_slices:
            self.clips[clip_slice.key].pending_slices.remove(clip_slice)
            self.encoded_patches += clip_slice.patches

    @torch.inference_mode()
    def encode_owned_slices(self, assigned: Sequence[AssignedSlice]) -> None:
        """Runs on every rank: encodes the slices that this rank owns and exchanges the features."""
        owned_slices = [part for part, owner in assigned if owner == self.collectives.tp.rank]
        encoded = self.collectives.succeed_or_fail_together(
            lambda: encode_slices(self.vision_tower, owned_slices, self.vision_config, has_flash=self.has_flash),
            self.device,
        )
        for (part, _), features in zip(assigned, self.exchange_features(assigned, encoded), strict=True):
            self.features_by_clip.setdefault(part.key, []).append(features)

    def exchange_features(self, assigned: Sequence[AssignedSlice], encoded: list[Tensor]) -> list[Tensor]:
        """The features of all slices in order; each owner broadcasts its own as one block."""
        tower, tp = self.vision_tower, self.collectives.tp
        if tp.size == 1:
            return encoded
        features_by_owner = {}
        for owner in sorted({owner for _, owner in assigned}):
            patch_counts = [part.patches for part, part_owner in assigned if part_owner == owner]
            token_counts = [patches // self.vision_config.merge_size**2 for patches in patch_counts]
            if owner == tp.rank:
                block = torch.cat(encoded, 1)
            else:
                shape = tower.feature_layers, sum(token_counts), tower.feature_width
                block = torch.empty(shape, dtype=tower.module.dtype, device=self.device)
            self.collectives.broadcast(block, owner)
            features_by_owner[owner] = (part.clone() for part in torch.split(block, token_counts, 1))
        return [next(features_by_owner[owner]) for _, owner in assigned]
