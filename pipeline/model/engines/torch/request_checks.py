"""A request -> a row that the engine can hold, or the reason why it never can.

What would fail on the device fails here, where it costs one row: a device-side error takes the
whole process with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import GenerateError, PromptError
from pipeline.model.engines.torch.memory import Room
from pipeline.model.engines.torch.sequence import Row, Vocabulary
from pipeline.model.engines.torch.vision import Gallery
from pipeline.model.families.base import Family
from pipeline.types import Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import Grammars, Matcher


class Intake:
    def __init__(self, family: Family, gallery: Gallery, vocabulary: Vocabulary, room: Room, width: int):
        self.family = family
        self.gallery = gallery
        self.vocabulary = vocabulary
        self.room = room
        self.width = width  # of the logits
        self.grammars: Grammars | None = None

    def row(self, request: Request) -> Row:
        ids = request.input_ids
        vision_at = np.flatnonzero(np.isin(ids, (self.family.image_token, self.family.video_token)))
        limit = self.limit(request)
        self.check(request, len(vision_at))
        matcher = self.matcher(request, limit)
        return Row(request, limit, tuple(self.gallery.enter(clip) for clip in request.clips), vision_at, matcher)

    def limit(self, request: Request) -> int:
        """New tokens there is room for."""
        prompt, wanted = (
            len(request.input_ids),
            request.sampling.max_new_tokens + (request.sampling.thinking_tokens or 0),
        )
        most = min(self.family.context, self.room.kv_tokens)
        if prompt >= most:
            kept = "the model's context" if most == self.family.context else "the key-value cache (engine.kv_tokens)"
            raise GenerateError(
                "too_long",
                f"the prompt has {prompt:,} tokens and {kept} holds {most:,}: lower max_pixels or max_frames",
            )
        return min(wanted, most - prompt)

    def check(self, request: Request, pads: int) -> None:
        ids, positions = request.input_ids, request.positions
        if len(ids) == 0 or positions.shape != (3, len(ids)):
            raise PromptError("shape", f"{len(ids)} prompt tokens with positions of shape {positions.shape}")
        if ids.min() < 0 or ids.max() >= self.width:
            raise PromptError("token", f"token {ids.max()} is outside the model's vocabulary of {self.width:,}")
        expected = sum(self.family.vision_tokens(clip.size, len(clip.pixels)) for clip in request.clips)
        if pads != expected:
            raise PromptError("media", f"the prompt has {pads:,} pad tokens and its media make {expected:,}")

    def matcher(self, request: Request, limit: int) -> Matcher | None:
        if request.schema is None:
            return None
        if self.grammars is None:
            from pipeline.model.guidance.grammar import Grammars

            stop = sorted(self.vocabulary.stop)
            self.grammars = Grammars(self.vocabulary.tokenizer, vocab_size=self.width, stop=stop)
        thinking = request.sampling.thinking_tokens
        return self.grammars.matcher(request.schema, budget=limit - (thinking or 0), thinking=thinking)
