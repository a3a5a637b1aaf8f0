"""One request inside the engine: the tokens it has, how many of them are computed, and how it ends.

A token is first known (from the prompt, by sampling, or because a grammar forces it) and then computed: the model runs
over it and its keys and values enter the KV cache. A sequence with one pending token decodes; with more, it prefills.
One that asks for probabilities prefills its prompt and then branches of it (`continuation_scorer.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ItemError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.torch.cache_runs import Run
from pipeline.model.engines.torch.continuation_scorer import NO_TARGETS, ContinuationScorer, TargetColumns
from pipeline.model.engines.torch.prompt_blocks import ClipSpan, PrefixRun, PromptBlock
from pipeline.model.engines.torch.vector_pooler import Span, VectorPooler
from pipeline.types import Failure, FinishReason, Reply, Request, TokenLogprob

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher


@dataclass(slots=True, eq=False)
class SequenceState:
    request: Request
    max_new_tokens: int  # thinking included
    clips: tuple[ClipSpan, ...]  # its pictures, until none is needed any more
    vision_indices: NDArray[np.int64]  # positions of the pad tokens in the prompt
    matcher: AnswerMatcher | None = None
    scorer: ContinuationScorer | None = None  # of a request for probabilities, which generates nothing
    pooler: VectorPooler | None = None  # of a request for a vector, which generates nothing
    blocks: Sequence[PromptBlock] = ()  # of the prompt, by which others find what it shares with theirs
    token_ids: NDArray[np.int64] = field(init=False)  # [max_tokens], filled up to known_tokens
    positions: NDArray[np.int64] = field(init=False)  # [axes, max_tokens]
    generator: Random = field(init=False)
    random_number: float = field(init=False)  # for the next token; a step that is repeated uses the same again
    known_tokens: int = field(init=False)
    prefill_tokens: int = field(init=False)  # the prompt, and what it had generated when it lost its run
    computed_tokens: int = 0
    run_start: int = -1  # where its run of the KV cache starts; -1 while it waits
    run_tokens: int = 0  # the length of the run
    next_run: Run | None = None  # a longer one, to which its next step moves it
    slot: int = -1  # -1 while it waits, and where it takes none
    state_side: int = 0  # which of the slot's two states of linear attention is that after `computed_tokens`
    kept_state_row: int | None = None  # where that state lies instead, if others use it, too
    branch_lengths: tuple[int, ...] = ()  # of the branches that it computes together
    prefix_run: PrefixRun | None = None  # what others may copy of it, while it runs
    prefix_source: PrefixRun | None = None  # the run from which it copies its first tokens
    prefix_tokens: int = 0  # so many of them
    awaited_tokens: int = 0  # it computes nothing until another sequence has computed so many of its tokens
    overtaken_count: int = 0  # later sequences that were admitted before it
    logprobs: NDArray[np.float32] = field(init=False)  # of the new tokens; NaN where one was forced
    thinking_tokens: int | None = None  # new tokens up to and including `</think>`, once it is known
    finish: FinishReason | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        self.token_ids = np.zeros(self.prompt_tokens + self.max_new_tokens, np.int64)
        self.token_ids[: self.prompt_tokens] = self.request.input_ids
        prompt_positions = self.request.positions
        self.positions = np.zeros((len(prompt_positions), self.max_tokens), np.int64)
        self.positions[:, : self.prompt_tokens] = prompt_positions
        self.logprobs = np.full(self.max_new_tokens, np.nan, np.float32)
        self.positions[:, self.prompt_tokens :] = prompt_positions.max() + 1 + np.arange(self.max_new_tokens)
        self.generator = Random(self.request.sampling.seed)
        self.random_number = self.generator.random()
        self.known_tokens = self.prefill_tokens = self.prompt_tokens

    @property
    def max_tokens(self) -> int:
        """The prompt and the longest answer."""
        return len(self.token_ids)

    @property
    def run_of_next_step(self) -> Run:
        return self.next_run or (self.run_start, self.run_tokens)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.input_ids)

    @property
    def output_tokens(self) -> int:
        return 0 if self.only_prefills else self.known_tokens - self.prompt_tokens

    @property
    def only_prefills(self) -> bool:
        return self.scorer is not None or self.pooler is not None

    @property
    def pending_tokens(self) -> int:
        return self.known_tokens - self.computed_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.computed_tokens >= self.prefill_tokens

    @property
    def is_new(self) -> bool:
        """No step of it is certain yet: the tokens that count as computed are those that it copies."""
        return self.computed_tokens == self.prefix_tokens

    @property
    def schedulable_tokens(self) -> int:
        """The pending tokens up to the next one whose state is kept."""
        if not (self.prefix_run and self.prefix_run.planned_rows):
            return self.pending_tokens
        stops = (end for end in self.prefix_run.planned_rows if end > self.computed_tokens)
        return min([self.known_tokens, *stops]) - self.computed_tokens

    @property
    def clip_keys(self) -> list[str]:
        return [clip.key for clip in self.clips]

    def list_needed_clips(self, copied_tokens: int = 0) -> list[str]:
        """The keys of pictures that it has to compute, with so many tokens copied."""
        done = max(self.computed_tokens, self.awaited_tokens, copied_tokens)
        return [clip.key for clip in self.clips if clip.end > done]

    def select_clips(self, first: int, end: int) -> tuple[list[str], int, int]:
        """The clips that these vision tokens of the prompt come from, and the tokens counted from the first clip's."""
        firsts = np.searchsorted(self.vision_indices, [clip.first for clip in self.clips])
        low, high = np.searchsorted(firsts, first, "right") - 1, np.searchsorted(firsts, end)
        keys = [clip.key for clip in self.clips[low:high]]
        return keys, first - int(firsts[low]), end - int(firsts[low])

    def choose_kept_row(self, token_count: int) -> int | None:
        """The row for the state after a step over so many tokens, if others use that state, too."""
        return self.prefix_run.planned_rows.get(self.computed_tokens + token_count) if self.prefix_run else None

    def mark_computed(self, token_count: int) -> None:
        """A step over so many tokens is certain: what it wrote counts."""
        if not self.is_in_branch:
            self.kept_state_row = self.choose_kept_row(token_count)
            self.computed_tokens += token_count
            if self.kept_state_row is None:
                self.state_side = 1 - self.state_side
            if self.prefix_run:
                self.prefix_run.mark_computed(self.computed_tokens, self.kept_state_row)
        if self.scorer and self.is_prefilled:
            self.scorer.branches.popleft()
            self.load_branch()

    def complete_move(self) -> list[Run]:
        """A step that moved it is certain. Returns what is free now."""
        if self.next_run is None:
            return []
        old_run = self.run_start, self.run_tokens
        (self.run_start, self.run_tokens), self.next_run = self.next_run, None
        if self.prefix_run:
            self.prefix_run.start = self.run_start
        return [old_run]

    def take_back_move(self) -> list[Run]:
        """It stays in its run. Returns what is free now."""
        unused, self.next_run = self.next_run, None
        return [unused] if unused else []

    def forget_computed(self) -> None:
        """It has lost its run, its slot and its state: all of its tokens are computed again."""
        self.run_start, self.run_tokens, self.slot = -1, 0, -1
        self.computed_tokens = self.prefix_tokens = self.awaited_tokens = self.state_side = 0
        self.kept_state_row = self.prefix_run = self.prefix_source = None
        self.prefill_tokens = self.known_tokens

    def load_branch(self) -> None:
        """The next branch takes its place behind the prompt; each of several begins at the position after it."""
        branches = self.scorer.branches if self.scorer else ()
        tokens, lengths = (branches[0].token_ids, branches[0].lengths) if branches else ((), ())
        self.known_tokens = self.prompt_tokens + len(tokens)
        self.branch_lengths = lengths
        own = slice(self.prompt_tokens, self.known_tokens)
        self.token_ids[own] = tokens
        places = np.concatenate([np.arange(length) for length in lengths or (len(tokens),)])
        self.positions[:, own] = self.request.positions.max() + 1 + places

    @property
    def is_in_branch(self) -> bool:
        """Whether it computes a branch behind its prompt, whose tokens are computed together."""
        return self.scorer is not None and self.is_prefilled

    def reaches_last_token(self, token_count: int) -> bool:
        """Whether a step over so many tokens gives the logits from which the next token is sampled."""
        return not self.only_prefills and self.computed_tokens + token_count >= self.known_tokens

    def list_targets(self, token_count: int) -> TargetColumns:
        """The tokens whose probability a step over so many tokens gives."""
        if self.scorer is None or self.computed_tokens + token_count < self.known_tokens:
            return NO_TARGETS
        return self.scorer.list_targets(token_count)

    def add_target_logprobs(self, continuations: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        assert self.scorer is not None
        if self.scorer.add_logprobs(continuations, logprobs):
            self.finish = "stop"

    def find_pooled_span(self, token_count: int) -> Span | None:
        """The states of a step over so many tokens that the vector needs."""
        return None if self.pooler is None else self.pooler.find_span(self.computed_tokens, token_count)

    def add_states(self, total: NDArray[np.float32]) -> None:
        assert self.pooler is not None
        self.pooler.add_states(total)
        if self.is_prefilled:
            self.finish = "stop"

    def fail(self, error: ItemError) -> None:
        self.failure = error.to_failure(self.request.id)

    def append_sampled_token(self, token: int, logprob: float, detokenizer: Detokenizer) -> None:
        """Append the token, and those that must follow it: forced by the grammar or by the thinking budget."""
        self.random_number = self.generator.random()
        if self.append_token(token, detokenizer):
            self.logprobs[self.output_tokens - 1] = logprob
        while self.finish is None and (forced_tokens := self.get_forced_tokens(detokenizer)):
            for forced_token in forced_tokens:
                self.append_token(forced_token, detokenizer)

    def get_forced_tokens(self, detokenizer: Detokenizer) -> list[int]:
        if self.matcher is not None:
            return self.matcher.get_forced_tokens()
        budget, think_end_token = self.request.sampling.max_thinking_tokens, detokenizer.think_end_token
        if budget is None or think_end_token is None or self.thinking_tokens is not None:
            return []
        return [think_end_token] if self.output_tokens >= budget else []

    def append_token(self, token: int, detokenizer: Detokenizer) -> bool:
        """False for a token that is not taken: the answer is complete, or no ending would fit the budget after it."""
        if self.finish is not None or (self.matcher is not None and not self.matcher.accept_token(token)):
            return False
        self.token_ids[self.known_tokens] = token
        self.known_tokens += 1
        if token == detokenizer.think_end_token and self.thinking_tokens is None:
            self.thinking_tokens = self.output_tokens
        if self.matcher is not None and self.matcher.is_done:
            self.finish = "length" if self.matcher.is_truncated else "stop"
        elif self.matcher is None and token in detokenizer.stop_tokens:
            self.finish = "stop"
        elif self.output_tokens == self.max_new_tokens:
            self.finish = "length"
        return True

    def build_reply(self, detokenizer: Detokenizer) -> Reply:
        if self.scorer:
            return Reply(self.request.id, "", continuation_logprobs=tuple(self.scorer.logprobs.tolist()))
        if self.pooler:
            return Reply(self.request.id, "", vector=self.pooler.compute_vector())
        output = self.token_ids[self.prompt_tokens : self.known_tokens].tolist()
        thinking, text = detokenizer.decode_output(output)
        _, answer = detokenizer.split_thinking(output)
        logprobs = self.logprobs[len(output) - len(answer) : len(output)]
        sampled = logprobs[~np.isnan(logprobs)]
        token_logprobs: tuple[TokenLogprob, ...] = ()
        if self.request.wants_confidence:
            known_logprobs = [None if math.isnan(logprob) else logprob for logprob in logprobs.tolist()]
            token_logprobs = detokenizer.locate_tokens(answer, known_logprobs, text)
        return Reply(
            id=self.request.id,
            text=text,
            finish=self.finish or "length",
            output_tokens=len(output),
            thinking=thinking,
            logprob=float(sampled.mean(dtype=np.float64)) if len(sampled) else None,
            token_logprobs=token_logprobs,
        )


def measure_load(waiting: Iterable[SequenceState]) -> Counter[str]:
    """What sequences bring: pixels, and tokens of those that only prefill. Adding it up for each request that comes
    would take longer than a short prompt does."""
    load = Counter(pixel_bytes=0, prefill_tokens=0)
    for sequence in waiting:
        load["pixel_bytes"] += sum(clip.pixels.nbytes for clip in sequence.request.clips)
        load["prefill_tokens"] += sequence.max_tokens * sequence.only_prefills
    return load
