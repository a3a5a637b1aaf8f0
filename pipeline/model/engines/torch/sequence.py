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

from pipeline.types import Failure, Finish, Reply, Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import Matcher

TAGS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What tokens mean outside the model."""

    tokenizer: Tokenizer
    stop: frozenset[int]
    think_end: int | None  # of a model whose answers begin inside <think>
    silent: frozenset[int]  # control tokens, which are not text

    @classmethod
    def of(cls, tokenizer: Tokenizer, stop: Iterable[int], *, thinking: bool) -> Vocabulary:
        spoken = {f"<|{tag}|>" for tag in TAGS}
        added = tokenizer.get_added_tokens_decoder()
        silent = {number for number, token in added.items() if token.special and token.content not in spoken}
        think_end = tokenizer.token_to_id("</think>") if thinking else None
        return cls(tokenizer, frozenset(stop), think_end, frozenset(silent))

    def text(self, tokens: Iterable[int]) -> str:
        # tags of boxes are marked special as well, but they are the answer
        spoken = [token for token in tokens if token not in self.silent and token not in self.stop]
        return self.tokenizer.decode(spoken, skip_special_tokens=False)


@dataclass(slots=True, eq=False)
class Row:
    request: Request
    limit: int  # new tokens at most, thinking included
    clips: tuple[str, ...]  # keys in the gallery
    vision_at: NDArray[np.int64]  # where in the prompt the pad tokens are
    matcher: Matcher | None = None
    ids: NDArray[np.int64] = field(init=False)  # [need] filled as far as `known`
    positions: NDArray[np.int64] = field(init=False)  # [3, need]
    random: Random = field(init=False)
    known: int = field(init=False)
    done: int = 0  # computed
    start: int = -1  # of its run in the cache
    overtaken: int = 0
    logprob: float = 0.0
    chosen: int = 0
    thought: int | None = None  # new tokens up to `</think>`, once it was said
    finish: Finish | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        prompt = len(self.request.input_ids)
        self.ids = np.zeros(prompt + self.limit, np.int64)
        self.ids[:prompt] = self.request.input_ids
        after = self.request.positions.max() + 1 + np.arange(self.limit)
        self.positions = np.concatenate([self.request.positions, np.tile(after, (3, 1))], 1).astype(np.int64)
        self.random = Random(self.request.sampling.seed)
        self.known = prompt

    @property
    def need(self) -> int:
        return len(self.ids)

    @property
    def prompt(self) -> int:
        return len(self.request.input_ids)

    @property
    def new(self) -> int:
        return self.known - self.prompt

    @property
    def todo(self) -> int:
        return self.known - self.done

    def choose(self, token: int, logprob: float, vocabulary: Vocabulary) -> None:
        """A token the model chose, and all that follow from it."""
        self.logprob += logprob
        self.chosen += 1
        self.know(token, vocabulary)
        if self.matcher is None:
            budget, think_end = self.request.sampling.thinking_tokens, vocabulary.think_end
            if self.thought is None and budget is not None and think_end is not None and self.new >= budget:
                self.know(think_end, vocabulary)
            return
        while self.finish is None and (forced := self.matcher.forced()):
            for token in forced:
                self.know(token, vocabulary)

    def know(self, token: int, vocabulary: Vocabulary) -> None:
        if self.finish is not None or (self.matcher is not None and not self.matcher.accept(token)):
            return  # refused where no ending would fit after it: the matcher now forces one
        self.ids[self.known] = token
        self.known += 1
        if token == vocabulary.think_end and self.thought is None:
            self.thought = self.new
        if self.matcher is not None and self.matcher.done:
            self.finish = "length" if self.matcher.cut else "stop"
        elif token in vocabulary.stop and self.matcher is None:
            self.finish = "stop"
        elif self.new == self.limit:
            self.finish = "length"

    def reply(self, vocabulary: Vocabulary) -> Reply:
        said = self.ids[self.prompt : self.known].tolist()
        cut, thinking = 0, None
        if vocabulary.think_end is not None:
            cut = len(said) if self.thought is None else self.thought
            thinking = vocabulary.text(token for token in said[:cut] if token != vocabulary.think_end).strip()
        text = vocabulary.text(said[cut:])
        return Reply(
            id=self.request.id,
            text=text if thinking is None else text.lstrip(),
            finish=self.finish or "length",
            tokens=len(said),
            thinking=thinking,
            logprob=self.logprob / self.chosen if self.chosen else None,
        )
