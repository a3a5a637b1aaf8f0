"""A JSON Schema, a budget -> the tokens a row may take next, so that its answer fits the schema and is never cut off.

One matcher a row; any mix of schemas in a batch. A matcher knows an ending that fits the tokens left: it looks for one
anew where the slack (tokens left, less those of the ending) has shrunk enough for it to matter, refuses a token
after which none would fit, and forces the ending when the slack is gone. The masks cost about 40 us a row and step with
a vocabulary of 152k, the endings a few us; nothing is searched while the budget is far away.

The engine's loop, for each row and step:

    tokens = matcher.forced()                   take these, if there are any, without asking the model
    matcher.fill(mask)                          else sample among these
    if not matcher.accept(token): ...           refused: do not take it; `forced()` now has the ending
    if matcher.done: ...                        the answer is complete; `cut` tells whether it was forced to be
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.model.guidance.ending_hints import build_sample, collect_hints, estimate_largest_instance
from pipeline.model.guidance.ending_search import EndingSearch
from pipeline.model.guidance.shortest_encoding import ShortestEncoder

TYPICAL_GROWTH = 8  # a token is expected to lengthen the ending by less than this, one large object aside


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """What is known of one schema, once for all rows."""

    token_matcher: LLMatcher  # at the start, over the model's vocabulary
    byte_matcher: LLMatcher  # the same over the closer's steps
    ending_search: EndingSearch
    shortest_answer: bytes  # the shortest answer there is
    sample_answers: tuple[bytes, bytes]  # answers with one of everything, without and with what is optional
    min_tokens: int  # in tokens
    largest_growth: int  # tokens by which one token may lengthen the ending, about


class GrammarCompiler:
    """Matchers for one tokenizer; what a schema needs is prepared once."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop_tokens: Sequence[int]):
        self.tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(stop_tokens))
        self.encoder = ShortestEncoder.from_tokenizer(self.tokenizer, vocab_size)
        self.stop_tokens = frozenset(stop_tokens)
        self.think_end: int | None = tokenizer.token_to_id("</think>")
        self.after_think_tokens = tokenizer.encode("\n\n", add_special_tokens=False).ids
        self.compiled_schemas: dict[str, CompiledSchema] = {}

    def create_matcher(self, schema_text: str, *, budget: int, thinking_budget: int | None = None) -> AnswerMatcher:
        """For one row: `budget` tokens for the answer and, for a thinking model, at most `thinking` before it."""
        rules = self.compile_schema(schema_text)
        if budget < rules.min_tokens:
            raise GenerateError(
                "no_close",
                f"no answer of this schema fits {budget} tokens: raise max_new_tokens to {rules.min_tokens} or more",
            )
        if thinking_budget is not None and self.think_end is None:
            raise GenerateError("thinking", "this checkpoint has no </think>: leave out answer.thinking")
        return AnswerMatcher(self, rules, budget, thinking_budget)

    def count_min_tokens(self, schema_text: str) -> int:
        """Tokens of the shortest answer."""
        return self.compile_schema(schema_text).min_tokens

    def compile_schema(self, schema_text: str) -> CompiledSchema:
        if schema_text not in self.compiled_schemas:
            self.compiled_schemas[schema_text] = self._compile_new_schema(schema_text)
        return self.compiled_schemas[schema_text]

    def _compile_new_schema(self, schema_text: str) -> CompiledSchema:
        grammar = LLMatcher.grammar_from_json_schema(schema_text, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GenerateError("schema", f"the grammar cannot hold this schema: {matcher.get_error()}")
        schema = json.loads(schema_text)
        closer = EndingSearch(collect_hints(schema))
        start = LLMatcher(closer.tokenizer, grammar, log_level=0)
        ending = closer.find_shortest(start)
        if ending is None:
            raise GenerateError("no_close", "no answer of this schema was found: does it need to contain itself?")
        ending = closer.shorten(start, ending)
        minimum = len(self.encoder.encode(ending))
        leap = estimate_largest_instance(schema) * minimum // max(1, len(ending)) + 1
        samples = build_sample(schema, with_optional=False), build_sample(schema, with_optional=True)
        return CompiledSchema(matcher, start, closer, ending, samples, minimum, leap)


def count_min_tokens(schema_text: str, tokenizer: Tokenizer) -> int:
    """Tokens of the shortest answer, for who has a tokenizer and no model."""
    return GrammarCompiler(tokenizer, vocab_size=tokenizer.get_vocab_size(), stop_tokens=[0]).count_min_tokens(
        schema_text
    )


class AnswerMatcher:
    """The state of one row. `left` tokens may still be taken for the answer."""

    def __init__(
        self, compiler: GrammarCompiler, compiled_schema: CompiledSchema, budget: int, thinking_budget: int | None
    ):
        self.compiler = compiler
        self.compiled_schema = compiled_schema
        self.tokens_left = budget
        self.thinking_left = thinking_budget  # tokens left to think; None when that is over, or never was
        self.token_matcher = compiled_schema.token_matcher.deep_copy()
        self.byte_matcher = compiled_schema.byte_matcher.deep_copy()
        self.pending_tokens: list[int] = []  # between thinking and the answer
        self.ending = compiled_schema.shortest_answer  # of the answer as it stood at the last look
        self.ending_tokens = compiler.encoder.encode(compiled_schema.shortest_answer)
        self.is_truncated = budget == len(self.ending_tokens)  # the rest is the plan
        self.is_done = False
        self.next_search_at = self._compute_next_search()

    def fill_mask(self, mask: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i of word i // 32, over the model's vocabulary."""
        bits = mask.view(np.uint32)
        if self.is_truncated or self.pending_tokens or (self.thinking_left is not None and self.get_forced_tokens()):
            token = self.get_forced_tokens()[0]
            bits.fill(0)
            bits[token // 32] = 1 << token % 32
        elif self.thinking_left is not None:
            bits.fill(0xFFFFFFFF)
            for stop in self.compiler.stop_tokens:
                bits[stop // 32] &= 0xFFFFFFFF ^ (1 << stop % 32)
        else:
            self.token_matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def get_forced_tokens(self) -> list[int]:
        """The tokens that must come next, none if there is a choice. Each is to be accepted, too."""
        if self.is_done:
            return []
        if self.thinking_left is not None:
            over = self.thinking_left <= 1 + len(self.compiler.after_think_tokens)
            return [self.compiler.think_end] if over and self.compiler.think_end is not None else []
        if self.pending_tokens or self.is_truncated:
            return list(self.pending_tokens or self.ending_tokens)
        tokens: list[int] = self.token_matcher.compute_ff_tokens()
        return tokens if len(tokens) < self.tokens_left - len(self.ending_tokens) else []

    def accept_token(self, token: int) -> bool:
        """Take a token. False: it is not taken, because no ending would fit after it."""
        if self.thinking_left is not None:
            self._accept_thinking_token(token)
        elif self.pending_tokens:
            self.pending_tokens.pop(0)
        elif token in self.compiler.stop_tokens and self.token_matcher.is_accepting():
            self.is_done = True
        else:
            return self._accept_answer_token(token)
        return True

    def truncate(self) -> None:
        """Force the ending of the answer as it stands; `forced()` then has all of it."""
        if not self.is_done and not self.is_truncated:
            self._force_ending()

    def _accept_thinking_token(self, token: int) -> None:
        assert self.thinking_left is not None
        self.thinking_left -= 1
        if token == self.compiler.think_end:
            self.thinking_left, self.pending_tokens = None, list(self.compiler.after_think_tokens)

    def _accept_answer_token(self, token: int) -> bool:
        step = self.compiler.encoder.token_bytes[token]
        looking = not self.is_truncated and self.tokens_left - 1 <= self.next_search_at
        before = (self.token_matcher.deep_copy(), self.byte_matcher.deep_copy()) if looking else None
        if not (self.token_matcher.consume_token(token) and self.byte_matcher.consume_tokens(list(step))):
            why = self.token_matcher.get_error() or self.byte_matcher.get_error()
            raise GenerateError("grammar", f"the grammar did not follow the answer: {why}")
        self.tokens_left -= 1
        if self.is_truncated:
            self.ending_tokens = self.ending_tokens[1:]
        elif before and not self._update_ending():
            self.token_matcher, self.byte_matcher = before
            self.tokens_left += 1
            self._force_ending()
            return False
        self.is_done = self.token_matcher.is_stopped() or (self.is_truncated and not self.ending_tokens)
        return True

    def _update_ending(self) -> bool:
        """Find an ending from here; False if none fits the tokens left."""
        ending = self._reuse_ending()
        if ending is None or len(self.compiler.encoder.encode(ending)) > self.tokens_left - 2:
            ending = self._search_shorter_ending(ending)
        if ending is None or len(self.compiler.encoder.encode(ending)) > self.tokens_left:
            return False
        self.ending, self.ending_tokens = ending, self.compiler.encoder.encode(ending)
        self.is_truncated = len(self.ending_tokens) == self.tokens_left
        self.next_search_at = self._compute_next_search()
        return True

    def _force_ending(self) -> None:
        """Force the ending of the answer as it stands, whatever was to come."""
        ending = self._reuse_ending()
        ending = self._search_shorter_ending(None) if ending is None else ending
        plan = None if ending is None else self.compiler.encoder.encode(ending)
        if plan is None or len(plan) > self.tokens_left:
            raise GenerateError(
                "no_close", f"no ending of the answer was found that fits the {self.tokens_left} tokens left"
            )
        self.ending_tokens, self.is_truncated, self.is_done = plan, True, not plan

    def _reuse_ending(self) -> bytes | None:
        """An ending without a search: what is left of the one known before, or the end of a sample."""
        return self.compiled_schema.ending_search.find_tail(
            self.byte_matcher, (self.ending, *self.compiled_schema.sample_answers)
        )

    def _search_shorter_ending(self, ending: bytes | None) -> bytes | None:
        found = self.compiled_schema.ending_search.find_shortest(self.byte_matcher)
        return min((text for text in (ending, found) if text is not None), key=len, default=None)

    def _compute_next_search(self) -> int:
        """How many tokens will be left when an ending must be looked for again."""
        slack = self.tokens_left - len(self.ending_tokens)
        return self.tokens_left - max(1, (slack - self.compiled_schema.largest_growth) // TYPICAL_GROWTH)
