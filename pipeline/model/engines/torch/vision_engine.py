"""Computes vectors from the features of media alone: the mean of a row's vision tokens.

It holds the vision tower and nothing of the language model. A step encodes the clips of as many waiting rows as the
patch budget takes, whichever rows they belong to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ItemError
from pipeline.model.engines.torch import memory
from pipeline.model.engines.torch.attention import has_flash
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.model_loader import load_vision_tower
from pipeline.model.engines.torch.oom_backoff import StepLimits, run_or_split
from pipeline.model.engines.torch.shard import SINGLE_RANK
from pipeline.model.engines.torch.vision_cache import VisionCache
from pipeline.model.engines.torch.vision_encoder import ClipSlice, VisionConfig
from pipeline.model.families.base import Family
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import Watchdog

MAX_WAITING_PIXEL_BYTES = 512 * 2**20


@dataclass(slots=True, eq=False)
class WaitingRow:
    request: Request
    clip_keys: tuple[str, ...]
    failure: Failure | None = None


class VisionEngine:
    def __init__(
        self,
        folder: Path,
        family: Family,
        *,
        device: str,
        patches: int | None = None,
        hang_s: float,
        **loading: Any,
    ):
        """`loading` are arguments of load_vision_tower."""
        tower = load_vision_tower(folder, device=torch.device(device), **loading)
        patches = patches or memory.DEFAULT_PATCHES_BY_DEVICE[device]
        self.vision_cache = VisionCache(
            tower,
            VisionConfig.from_family(family),
            Collectives(SINGLE_RANK),
            has_flash=has_flash(torch.device(device), tower.module.dtype),
            max_kept_patches=memory.KEPT_CALLS * patches,
        )
        self.limits = StepLimits(prefill_tokens=1, patches=patches, max_sequences=1)
        self.waiting: deque[WaitingRow] = deque()
        self.watchdog = Watchdog(hang_s)
        self.counters: Counter[str] = Counter(rows=0, steps=0, prompt_tokens=0)

    def has_room(self) -> bool:
        pixel_bytes = [sum(clip.pixels.nbytes for clip in row.request.clips) for row in self.waiting]
        side = self.vision_cache.vision_config.patch_size
        enough = 2 * self.limits.patches * 3 * side**2  # the patches of two steps
        return sum(pixel_bytes) < min(enough, MAX_WAITING_PIXEL_BYTES)

    def submit(self, request: Request) -> None:
        keys = tuple(self.vision_cache.add_clip(clip) for clip in request.clips)
        self.waiting.append(WaitingRow(request, keys))

    def step(self) -> list[Reply | Failure]:
        if not self.waiting:
            return []
        with self.watchdog:
            keys = chain.from_iterable(row.clip_keys for row in self.waiting if row.failure is None)
            slices = self.vision_cache.select_slices(keys, self.limits.patches)
            run_or_split(slices, self.vision_cache.encode_slices, self.fail_clip, self.limits)
            self.counters["steps"] += 1
            finished = [row for row in self.waiting if row.failure or self.vision_cache.is_encoded(row.clip_keys)]
            replies = [row.failure or self.build_reply(row) for row in finished]
            for row in finished:
                self.waiting.remove(row)
                for key in row.clip_keys:
                    self.vision_cache.release_clip(key)
        self.counters["rows"] += len(finished)
        self.counters["prompt_tokens"] += sum(row.request.prompt_tokens for row in finished)
        return replies

    def build_reply(self, row: WaitingRow) -> Reply:
        parts = self.vision_cache.select_features(row.clip_keys, 0, row.request.vision_tokens)
        features = torch.cat([part[0] for part in parts])  # those of the last layer of the tower
        return Reply(row.request.id, "", vector=features.float().mean(0).cpu().numpy())

    def fail_clip(self, clip_slice: ClipSlice, error: ItemError) -> None:
        for row in self.waiting:
            if clip_slice.key in row.clip_keys:
                row.failure = error.to_failure(row.request.id)

    def metrics(self) -> Mapping[str, float]:
        counts = {"waiting": len(self.waiting), "busy": len(self.waiting), "slots": len(self.waiting)}
        return {**self.counters, **counts, "patches": self.vision_cache.encoded_patches}

    def close(self) -> None:
        self.watchdog.close()
        self.waiting.clear()
