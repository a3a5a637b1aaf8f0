"""A request -> a row that the engine can hold, or the reason why it never can.

What would fail on the device fails here, where it costs one row: a device-side error takes the
whole process with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import GenerateError, PromptError
from pipeline.model.engines.torch.memory import EngineSizes
from pipeline.model.engines.torch.sequence import Detokenizer, SequenceState
from pipeline.model.engines.torch.vision import VisionCache
from pipeline.model.families.base import Family
from pipeline.types import Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher, GrammarCompiler


class SequenceBuilder:
    def __init__(
        self,
        family: Family,
        vision_cache: VisionCache,
        detokenizer: Detokenizer,
        sizes: EngineSizes,
        vocabulary_size: int,
    ):
        self.family = family
        self.vision_cache = vision_cache
        self.detokenizer = detokenizer
        self.sizes = sizes
        self.vocabulary_size = vocabulary_size  # of the logits
        self.grammar_compiler: GrammarCompiler | None = None

    def build_sequence(self, request: Request) -> SequenceState:
        ids = request.input_ids
        vision_at = np.flatnonzero(np.isin(ids, (self.family.image_token, self.family.video_token)))
        limit = self.compute_token_limit(request)
        self.check_request(request, len(vision_at))
        matcher = self.create_matcher(request, limit)
        return SequenceState(
            request, limit, tuple(self.vision_cache.add_clip(clip) for clip in request.clips), vision_at, matcher
        )

    def compute_token_limit(self, request: Request) -> int:
        """New tokens there is room for."""
        prompt, wanted = (
            len(request.input_ids),
            request.sampling.max_new_tokens + (request.sampling.max_thinking_tokens or 0),
        )
        most = min(self.family.context_length, self.sizes.kv_tokens)
        if prompt >= most:
            kept = (
                "the model's context"
                if most == self.family.context_length
                else "the key-value cache (engine.kv_tokens)"
            )
            raise GenerateError(
                "too_long",
                f"the prompt has {prompt:,} tokens and {kept} holds {most:,}: lower max_pixels or max_frames",
            )
        return min(wanted, most - prompt)

    def check_request(self, request: Request, pad_count: int) -> None:
        ids, positions = request.input_ids, request.positions
        if len(ids) == 0 or positions.shape != (3, len(ids)):
            raise PromptError("shape", f"{len(ids)} prompt tokens with positions of shape {positions.shape}")
        if ids.min() < 0 or ids.max() >= self.vocabulary_size:
            raise PromptError(
                "token", f"token {ids.max()} is outside the model's vocabulary of {self.vocabulary_size:,}"
            )
        expected = sum(self.family.count_vision_tokens(clip.size, len(clip.pixels)) for clip in request.clips)
        if pad_count != expected:
            raise PromptError("media", f"the prompt has {pad_count:,} pad tokens and its media make {expected:,}")

    def create_matcher(self, request: Request, max_new_tokens: int) -> AnswerMatcher | None:
        if request.schema_text is None:
            return None
        if self.grammar_compiler is None:
            from pipeline.model.guidance.grammar import GrammarCompiler

            stop = sorted(self.detokenizer.stop_tokens)
            self.grammar_compiler = GrammarCompiler(
                self.detokenizer.tokenizer, vocab_size=self.vocabulary_size, stop_tokens=stop
            )
        thinking = request.sampling.max_thinking_tokens
        return self.grammar_compiler.create_matcher(
            request.schema_text, budget=max_new_tokens - (thinking or 0), thinking_budget=thinking
        )
