"""One request inside the engine: tokens known, tokens computed, and what becomes of them.

Every token of a row is first known (from the prompt, by choice, or because a grammar forces it) and
then computed. A row that has one token to compute is decoding; one with more is reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.types import Failure, FinishReason, Reply, Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher

BOX_TAGS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")


@dataclass(frozen=True, slots=True)
class Detokenizer:
    """What tokens mean outside the model."""

    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    think_end_token: int | None  # of a model whose answers begin inside <think>
    control_tokens: frozenset[int]  # control tokens, which are not text

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, stop_tokens: Iterable[int], *, thinking: bool) -> Detokenizer:
        spoken = {f"<|{tag}|>" for tag in BOX_TAGS}
        added = tokenizer.get_added_tokens_decoder()
        silent = {number for number, token in added.items() if token.special and token.content not in spoken}
        think_end = tokenizer.token_to_id("</think>") if thinking else None
        return cls(tokenizer, frozenset(stop_tokens), think_end, frozenset(silent))

    def decode(self, tokens: Iterable[int]) -> str:
        # tags of boxes are marked special as well, but they are the answer
        spoken = [token for token in tokens if token not in self.control_tokens and token not in self.stop_tokens]
        return self.tokenizer.decode(spoken, skip_special_tokens=False)


@dataclass(slots=True, eq=False)
class SequenceState:
    request: Request
    max_new_tokens: int  # new tokens at most, thinking included
    clip_keys: tuple[str, ...]  # keys in the gallery
    vision_indices: NDArray[np.int64]  # where in the prompt the pad tokens are
    matcher: AnswerMatcher | None = None
    token_ids: NDArray[np.int64] = field(init=False)  # [need] filled as far as `known`
    positions: NDArray[np.int64] = field(init=False)  # [3, need]
    random: Random = field(init=False)
    known_tokens: int = field(init=False)
    computed_tokens: int = 0  # computed
    run_start: int = -1  # of its run in the cache
    overtaken_count: int = 0
    logprob_sum: float = 0.0
    chosen_tokens: int = 0
    thinking_tokens: int | None = None  # new tokens up to `</think>`, once it was said
    finish: FinishReason | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        prompt = len(self.request.input_ids)
        self.token_ids = np.zeros(prompt + self.max_new_tokens, np.int64)
        self.token_ids[:prompt] = self.request.input_ids
        after = self.request.positions.max() + 1 + np.arange(self.max_new_tokens)
        self.positions = np.concatenate([self.request.positions, np.tile(after, (3, 1))], 1).astype(np.int64)
        self.random = Random(self.request.sampling.seed)
        self.known_tokens = prompt

    @property
    def max_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.input_ids)

    @property
    def output_tokens(self) -> int:
        return self.known_tokens - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        return self.known_tokens - self.computed_tokens

    def append_chosen_token(self, token: int, logprob: float, detokenizer: Detokenizer) -> None:
        """A token the model chose, and all that follow from it."""
        self.logprob_sum += logprob
        self.chosen_tokens += 1
        self.append_token(token, detokenizer)
        if self.matcher is None:
            budget, think_end = self.request.sampling.max_thinking_tokens, detokenizer.think_end_token
            if (
                self.thinking_tokens is None
                and budget is not None
                and think_end is not None
                and self.output_tokens >= budget
            ):
                self.append_token(think_end, detokenizer)
            return
        while self.finish is None and (forced := self.matcher.get_forced_tokens()):
            for token in forced:
                self.append_token(token, detokenizer)

    def append_token(self, token: int, detokenizer: Detokenizer) -> None:
        if self.finish is not None or (self.matcher is not None and not self.matcher.accept_token(token)):
            return  # refused where no ending would fit after it: the matcher now forces one
        self.token_ids[self.known_tokens] = token
        self.known_tokens += 1
        if token == detokenizer.think_end_token and self.thinking_tokens is None:
            self.thinking_tokens = self.output_tokens
        if self.matcher is not None and self.matcher.is_done:
            self.finish = "length" if self.matcher.is_truncated else "stop"
        elif token in detokenizer.stop_tokens and self.matcher is None:
            self.finish = "stop"
        elif self.output_tokens == self.max_new_tokens:
            self.finish = "length"

    def build_reply(self, detokenizer: Detokenizer) -> Reply:
        said = self.token_ids[self.prompt_tokens : self.known_tokens].tolist()
        cut, thinking = 0, None
        if detokenizer.think_end_token is not None:
            cut = len(said) if self.thinking_tokens is None else self.thinking_tokens
            thinking = detokenizer.decode(token for token in said[:cut] if token != detokenizer.think_end_token).strip()
        text = detokenizer.decode(said[cut:])
        return Reply(
            id=self.request.id,
            text=text if thinking is None else text.lstrip(),
            finish=self.finish or "length",
            output_tokens=len(said),
            thinking=thinking,
            logprob=self.logprob_sum / self.chosen_tokens if self.chosen_tokens else None,
        )
