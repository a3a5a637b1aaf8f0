"""Turns a request into a sequence, or refuses it with a reason.

What would fail on the device has to fail here, where it costs one row: a device-side error ends the whole process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import GenerateError, PromptError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.torch.memory import EngineSizes
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.vision_cache import VisionCache
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
        vocabulary_size: int,  # of the logits, which may be wider than the tokenizer's
    ):
        self.family = family
        self.vision_cache = vision_cache
        self.detokenizer = detokenizer
        self.sizes = sizes
        self.vocabulary_size = vocabulary_size
        self.grammar_compiler: GrammarCompiler | None = None

    def build_sequence(self, request: Request) -> SequenceState:
        pad_tokens = self.family.image_token, self.family.video_token
        vision_indices = np.flatnonzero(np.isin(request.input_ids, pad_tokens))
        max_new_tokens = self.limit_new_tokens(request)
        self.check_request(request, len(vision_indices))
        matcher = self.create_matcher(request, max_new_tokens)
        clip_keys = tuple(self.vision_cache.add_clip(clip) for clip in request.clips)
        return SequenceState(request, max_new_tokens, clip_keys, vision_indices, matcher)

    def limit_new_tokens(self, request: Request) -> int:
        """The new tokens that were asked for, or as many as the context and the KV cache hold after the prompt."""
        prompt_tokens = len(request.input_ids)
        requested = request.sampling.max_new_tokens + (request.sampling.max_thinking_tokens or 0)
        capacity = min(self.family.context_length, self.sizes.kv_tokens)
        if prompt_tokens >= capacity:
            holder = (
                "the model's context"
                if capacity == self.family.context_length
                else "the key-value cache (engine.kv_tokens)"
            )
            raise GenerateError(
                "too_long",
                f"the prompt has {prompt_tokens:,} tokens and {holder} holds {capacity:,}: "
                "lower max_pixels or max_frames",
            )
        return min(requested, capacity - prompt_tokens)

    def check_request(self, request: Request, pad_count: int) -> None:
        ids, positions = request.input_ids, request.positions
        if len(ids) == 0 or positions.shape != (self.family.architecture.position_axes, len(ids)):
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

            self.grammar_compiler = GrammarCompiler(
                self.detokenizer.tokenizer,
                vocab_size=self.vocabulary_size,
                stop_tokens=sorted(self.detokenizer.stop_tokens),
            )
        thinking_budget = request.sampling.max_thinking_tokens
        return self.grammar_compiler.create_matcher(
            request.schema_text, budget=max_new_tokens - (thinking_budget or 0), thinking_budget=thinking_budget
        )
