"""Turns a request into a sequence, or refuses it with a reason.

What would fail on the device has to fail here, where it costs one row: a device-side error ends the whole process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GenerateError, PromptError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.torch.continuation_scorer import ContinuationScorer
from pipeline.model.engines.torch.prompt_blocks import ClipSpan, PromptBlock, hash_blocks
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.vector_pooler import VectorPooler
from pipeline.model.engines.torch.vision_cache import VisionCache
from pipeline.model.families.base import Family
from pipeline.types import Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher, GrammarCompiler


@dataclass
class SequenceBuilder:
    family: Family
    vision_cache: VisionCache
    detokenizer: Detokenizer
    kv_tokens: int  # of the whole cache
    vocabulary_size: int  # of the logits, which may be wider than the tokenizer's
    reuses_prefixes: bool = True
    joined_branch_tokens: int = 0  # that are computed in one step behind a prompt; 0: one branch at a time
    grammar_compiler: GrammarCompiler | None = None

    def build_sequence(self, request: Request) -> SequenceState:
        is_pad = np.isin(request.input_ids, (self.family.image_token, self.family.video_token))
        vision_indices = np.flatnonzero(is_pad)
        max_new_tokens = self.limit_new_tokens(request)
        scorer = None
        if request.continuations:
            room = self.kv_tokens - len(request.input_ids)
            scorer = ContinuationScorer(request.continuations, min(self.joined_branch_tokens, room))
            max_new_tokens = scorer.longest
        self.check_request(request, len(vision_indices), sum(self.count_vision_tokens(request)))
        matcher = self.create_matcher(request, max_new_tokens)
        pooler = VectorPooler(request.pooling, len(request.input_ids)) if request.pooling else None
        clips = self.add_clips(request, vision_indices)
        blocks: tuple[PromptBlock, ...] = ()
        if self.reuses_prefixes and not (request.pooling and request.pooling.method == "mean"):  # of all states
            blocks = hash_blocks(request.input_ids, request.positions, clips)
        return SequenceState(request, max_new_tokens, clips, vision_indices, matcher, scorer, pooler, blocks)

    def count_vision_tokens(self, request: Request) -> list[int]:
        return [self.family.count_vision_tokens(clip.size, len(clip.pixels)) for clip in request.clips]

    def add_clips(self, request: Request, vision_indices: NDArray[np.int64]) -> tuple[ClipSpan, ...]:
        """Enter the pictures in the vision cache, until they are released."""
        keys = [self.vision_cache.add_clip(clip) for clip in request.clips]
        parts = np.split(vision_indices, np.cumsum(self.count_vision_tokens(request))[:-1]) if keys else []
        return tuple(ClipSpan(key, int(part[0]), int(part[-1]) + 1) for key, part in zip(keys, parts, strict=True))

    def limit_new_tokens(self, request: Request) -> int:
        """The new tokens that were asked for, or as many as the context and the KV cache hold after the prompt.

        Of continuations all must fit.
        """
        prompt_tokens = len(request.input_ids)
        requested = request.sampling.max_new_tokens + (request.sampling.max_thinking_tokens or 0)
        capacity = min(self.family.context_length, self.kv_tokens)
        if request.continuations:
            requested = max(len(part.token_ids) for part in request.continuations) - 1
            prompt_tokens += requested
        if prompt_tokens >= capacity:
            is_context = capacity == self.family.context_length
            holder = "the model's context" if is_context else "the key-value cache (engine.kv_tokens)"
            problem = f"the prompt has {prompt_tokens:,} tokens and {holder} holds {capacity:,}"
            raise GenerateError("too_long", f"{problem}: lower max_pixels or max_frames")
        return requested if request.continuations else min(requested, capacity - prompt_tokens)

    def check_request(self, request: Request, pad_count: int, expected: int) -> None:
        ids, positions = request.input_ids, request.positions
        if len(ids) == 0 or positions.shape != (self.family.architecture.position_axes, len(ids)):
            raise PromptError("shape", f"{len(ids)} prompt tokens with positions of shape {positions.shape}")
        highest = max([int(ids.max()), *(token for part in request.continuations for token in part.token_ids)])
        if ids.min() < 0 or highest >= self.vocabulary_size:
            problem = f"token {highest} is outside the model's vocabulary of {self.vocabulary_size:,}"
            raise PromptError("token", problem)
        if pad_count != expected:
            raise PromptError("media", f"the prompt has {pad_count:,} pad tokens and its media make {expected:,}")

    def create_matcher(self, request: Request, max_new_tokens: int) -> AnswerMatcher | None:
        if request.schema_text is None:
            return None
        if self.grammar_compiler is None:
            from pipeline.model.guidance.grammar import GrammarCompiler

            stop_tokens = sorted(self.detokenizer.stop_tokens)
            self.grammar_compiler = GrammarCompiler(
                self.detokenizer.tokenizer, vocab_size=self.vocabulary_size, stop_tokens=stop_tokens
            )
        thinking_budget = request.sampling.max_thinking_tokens
        budget = max_new_tokens - (thinking_budget or 0)
        return self.grammar_compiler.create_matcher(request.schema_text, budget=budget, thinking_budget=thinking_budget)
