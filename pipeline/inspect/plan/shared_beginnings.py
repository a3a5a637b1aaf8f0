"""Counts the tokens of prompts that an engine copies, because a row shortly before began alike.

It hashes blocks as `engines/torch/prompt_blocks.py` does. Media count as equal by name and size, for a plan has no
pixels; media that a manifest holds as bytes have no names and never count.
"""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from pipeline.model.engines.torch.prompt_blocks import ClipSpan, hash_blocks
from pipeline.model.families.base import Family
from pipeline.types import Clip, Request

REMEMBERED_ROWS = 64  # about as many as an engine works on at once


class BeginningCounter:
    def __init__(self, family: Family):
        self.family = family
        self.rows: deque[list[bytes]] = deque()
        self.counts: Counter[bytes] = Counter()  # of remembered rows, by hash of a block
        self.row_number = 0

    def count_copied(self, request: Request) -> tuple[int, int]:
        """The tokens that the prompt has in common with an earlier one, and how many of them are of pictures."""
        self.row_number += 1
        if request.pooling and request.pooling.method == "mean":  # of all states, so none is left out
            return 0, 0
        spans = self.locate_clips(request)
        blocks = hash_blocks(request.input_ids, request.positions, spans)
        copied = max((block.end for block in blocks if self.counts[block.hash]), default=0)
        self.remember([block.hash for block in blocks])
        return copied, sum(span.end - span.first for span in spans if span.end <= copied)

    def locate_clips(self, request: Request) -> list[ClipSpan]:
        is_pad = np.isin(request.input_ids, (self.family.image_token, self.family.video_token))
        pads = iter(np.flatnonzero(is_pad).tolist())
        spans = []
        for number, clip in enumerate(request.clips):
            places = [next(pads) for _ in range(self.family.count_vision_tokens(clip.size, len(clip.pixels)))]
            name = f"example {number}" if number < request.example_clips else self.name_clip(clip, number)
            spans.append(ClipSpan(name, places[0], places[-1] + 1))
        return spans

    def name_clip(self, clip: Clip, number: int) -> str:
        is_named = not clip.uri.startswith(("(", "data:"))
        name = clip.uri if is_named else f"{self.row_number}, {number}"
        return repr((name, clip.size, clip.source_region, clip.times))

    def remember(self, hashes: list[bytes]) -> None:
        self.rows.append(hashes)
        self.counts.update(hashes)
        if len(self.rows) > REMEMBERED_ROWS:
            self.counts -= Counter(self.rows.popleft())
