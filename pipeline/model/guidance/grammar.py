"""Decides which tokens a row may take next, so that its answer fits its schema and is never cut off by its budget.

Each row has one matcher, so schemas mix freely in a batch. A matcher always knows an ending that fits the tokens left.
It searches for a new one only when the slack (tokens left minus tokens of the ending) may run out, refuses a token
after which no ending would fit, and forces the ending when the slack is gone. A mask costs about 40 us for a row and
step with a vocabulary of 152k; an ending costs a few us.

The engine's loop, for each row and step:

    tokens = matcher.get_forced_tokens()        if there are any, accept these without asking the model
    matcher.fill_mask(mask)                     otherwise sample a token under this mask
    matcher.accept_token(token)                 False: discard the token; the ending is forced from here
    matcher.is_done                             the answer is complete; `is_truncated`: its ending was forced
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.model.guidance.ending_hints import build_sample, collect_hints, estimate_largest_instance
from pipeline.model.guidance.ending_search import EndingSearch
from pipeline.model.guidance.shortest_encoding import ShortestEncoder

TYPICAL_GROWTH = 8  # tokens: one token lengthens the ending by less, unless it opens a large object


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """The state that all rows of one schema share."""

    token_matcher: LLMatcher  # at the start of an answer, over the model's vocabulary
    byte_matcher: LLMatcher  # the same, over the steps of the ending search
    ending_search: EndingSearch
    shortest_answer: bytes
    sample_answers: tuple[bytes, bytes]  # without and with optional properties
    min_tokens: int  # of the shortest answer
    largest_growth: int  # tokens by which one token may lengthen the ending, about


class GrammarCompiler:
    """Creates matchers for one tokenizer. Compiles each schema once."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop_tokens: Sequence[int]):
        self.tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(stop_tokens))
        self.encoder = ShortestEncoder.from_tokenizer(self.tokenizer, vocab_size)
        self.stop_tokens = frozenset(stop_tokens)
        self.think_end: int | None = tokenizer.token_to_id("</think>")
        self.after_think_tokens = tokenizer.encode("\n\n", add_special_tokens=False).ids
        self.compiled_schemas: dict[str, CompiledSchema] = {}

    def create_matcher(self, schema_text: str, *, budget: int, thinking_budget: int | None = None) -> AnswerMatcher:
        """A matcher for one row. `budget` holds for the answer, `thinking_budget` for the thinking before it."""
        compiled_schema = self.compile_schema(schema_text)
        if budget < compiled_schema.min_tokens:
            raise GenerateError(
                "no_close",
                f"no answer of this schema fits {budget} tokens: "
                f"raise max_new_tokens to {compiled_schema.min_tokens} or more",
            )
        if thinking_budget is not None and self.think_end is None:
            raise GenerateError("thinking", "this checkpoint has no </think> token: remove answer.thinking")
        return AnswerMatcher(self, compiled_schema, budget, thinking_budget)

    def count_min_tokens(self, schema_text: str) -> int:
        """The number of tokens of the shortest answer."""
        return self.compile_schema(schema_text).min_tokens

    def compile_schema(self, schema_text: str) -> CompiledSchema:
        if schema_text not in self.compiled_schemas:
            self.compiled_schemas[schema_text] = self._compile_new_schema(schema_text)
        return self.compiled_schemas[schema_text]

    def _compile_new_schema(self, schema_text: str) -> CompiledSchema:
        grammar = build_grammar(schema_text)
        token_matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        require_enforceable(token_matcher)
        schema = json.loads(schema_text)
        ending_search = EndingSearch(collect_hints(schema))
        byte_matcher = LLMatcher(ending_search.tokenizer, grammar, log_level=0)
        short_answer = find_shortest_answer(ending_search, byte_matcher)
        min_tokens = len(self.encoder.encode(short_answer))
        return CompiledSchema(
            token_matcher,
            byte_matcher,
            ending_search,
            shortest_answer=short_answer,
            sample_answers=(build_sample(schema, with_optional=False), build_sample(schema, with_optional=True)),
            min_tokens=min_tokens,
            largest_growth=estimate_largest_instance(schema) * min_tokens // max(1, len(short_answer)) + 1,
        )


def build_grammar(schema_text: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema_text, overrides={"whitespace_flexible": False})


def require_enforceable(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GenerateError("schema", f"the grammar cannot enforce this schema: {matcher.get_error()}")


def find_shortest_answer(ending_search: EndingSearch, byte_matcher: LLMatcher) -> bytes:
    answer = ending_search.find_shortest(byte_matcher)
    if answer is None:
        raise GenerateError("no_close", "no answer of this schema was found: does it need to contain itself?")
    return ending_search.shorten(byte_matcher, answer)


def count_min_bytes(schema_text: str) -> int:
    """The length of the shortest answer. It needs no vocabulary, of which a large one takes seconds to prepare."""
    ending_search = EndingSearch(collect_hints(json.loads(schema_text)))
    byte_matcher = LLMatcher(ending_search.tokenizer, build_grammar(schema_text), log_level=0)
    require_enforceable(byte_matcher)
    return len(find_shortest_answer(ending_search, byte_matcher))


def count_min_tokens(schema_text: str, tokenizer: Tokenizer) -> int:
    """The number of tokens of the shortest answer, for callers without a model."""
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.get_vocab_size(), stop_tokens=[0])
    return compiler.count_min_tokens(schema_text)


class MatcherState(Enum):
    """The phase of a row. Transitions go down this list; each state may be skipped."""

    THINKING = auto()  # any token but a stop token, until `</think>`, which is forced when the thinking budget ends
    AFTER_THINKING = auto()  # the tokens between `</think>` and the answer are forced
    ANSWERING = auto()  # the grammar masks the tokens
    ENDING = auto()  # the rest of the answer is forced, because the budget allows nothing longer
    DONE = auto()


class AnswerMatcher:
    """The state of one row."""

    def __init__(
        self, compiler: GrammarCompiler, compiled_schema: CompiledSchema, budget: int, thinking_budget: int | None
    ):
        self.compiler = compiler
        self.compiled_schema = compiled_schema
        self.tokens_left = budget  # for the answer
        self.thinking_left = thinking_budget or 0
        self.separator_tokens = list(compiler.after_think_tokens)  # still to come between thinking and answer
        self.token_matcher = compiled_schema.token_matcher.deep_copy()
        self.byte_matcher = compiled_schema.byte_matcher.deep_copy()
        self.ending = compiled_schema.shortest_answer  # of the answer as it stood at the last search
        self.ending_tokens = compiler.encoder.encode(compiled_schema.shortest_answer)
        self.next_search_at = self._compute_next_search()
        self.is_truncated = False  # whether the ending was forced
        self.state = MatcherState.THINKING
        if thinking_budget is None:
            self._start_answer()

    @property
    def is_done(self) -> bool:
        return self.state is MatcherState.DONE

    def fill_mask(self, mask: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i of word i // 32, over the model's vocabulary."""
        if self.state in (MatcherState.ANSWERING, MatcherState.DONE):  # when done, the grammar allows stop tokens only
            self.token_matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            return
        bits = mask.view(np.uint32)
        if forced_tokens := self.get_forced_tokens():
            bits.fill(0)
            bits[forced_tokens[0] // 32] = 1 << forced_tokens[0] % 32
        else:
            bits.fill(0xFFFFFFFF)
            for stop_token in self.compiler.stop_tokens:
                bits[stop_token // 32] &= 0xFFFFFFFF ^ (1 << stop_token % 32)

    def get_forced_tokens(self) -> list[int]:
        """The tokens that must come next; none where there is a choice. The caller still has to accept them."""
        match self.state:
            case MatcherState.THINKING:
                is_spent = self.thinking_left <= 1 + len(self.separator_tokens)
                return [self.compiler.think_end] if is_spent and self.compiler.think_end is not None else []
            case MatcherState.AFTER_THINKING:
                return list(self.separator_tokens)
            case MatcherState.ANSWERING:
                tokens: list[int] = self.token_matcher.compute_ff_tokens()
                return tokens if len(tokens) < self.tokens_left - len(self.ending_tokens) else []
            case MatcherState.ENDING:
                return list(self.ending_tokens)
            case MatcherState.DONE:
                return []

    def accept_token(self, token: int) -> bool:
        """Advance by a token. False: no ending would fit after it, so it is not taken and the ending is forced."""
        if self.state is MatcherState.THINKING:
            self._accept_thinking_token(token)
        elif self.state is MatcherState.AFTER_THINKING:
            self._accept_separator_token()
        elif token in self.compiler.stop_tokens and self.token_matcher.is_accepting():
            self.state = MatcherState.DONE
        elif self.state is MatcherState.ENDING:
            self._accept_ending_token(token)
        else:
            return self._accept_answer_token(token)
        return True

    def truncate(self) -> None:
        """Force the ending of the answer as it stands; `get_forced_tokens()` then returns all of it."""
        if self.state is MatcherState.ANSWERING:
            self._force_ending()

    def _accept_thinking_token(self, token: int) -> None:
        self.thinking_left -= 1
        if token == self.compiler.think_end:
            self.state = MatcherState.AFTER_THINKING
            if not self.separator_tokens:
                self._start_answer()

    def _accept_separator_token(self) -> None:
        self.separator_tokens.pop(0)
        if not self.separator_tokens:
            self._start_answer()

    def _start_answer(self) -> None:
        self.state = MatcherState.ANSWERING
        if len(self.ending_tokens) == self.tokens_left:
            self._start_ending(self.ending_tokens)

    def _accept_answer_token(self, token: int) -> bool:
        must_search = self.tokens_left - 1 <= self.next_search_at
        snapshot = (self.token_matcher.deep_copy(), self.byte_matcher.deep_copy()) if must_search else None
        self._consume_token(token)
        if snapshot and not self._update_ending():
            self.token_matcher, self.byte_matcher = snapshot
            self.tokens_left += 1
            self._force_ending()
            return False
        if self.token_matcher.is_stopped():
            self.state = MatcherState.DONE
        return True

    def _accept_ending_token(self, token: int) -> None:
        self._consume_token(token)
        self._start_ending(self.ending_tokens[1:])
        if self.token_matcher.is_stopped():
            self.state = MatcherState.DONE

    def _consume_token(self, token: int) -> None:
        token_bytes = self.compiler.encoder.token_bytes[token]
        if not (self.token_matcher.consume_token(token) and self.byte_matcher.consume_tokens(list(token_bytes))):
            reason = self.token_matcher.get_error() or self.byte_matcher.get_error()
            raise GenerateError("grammar", f"the grammar did not follow the answer: {reason}")
        self.tokens_left -= 1

    def _update_ending(self) -> bool:
        """Find an ending from here; False if none fits the tokens left."""
        ending = self._reuse_ending()
        if ending is None or self._count_tokens(ending) > self.tokens_left - 2:
            ending = self._search_shorter_ending(ending)
        if ending is None or self._count_tokens(ending) > self.tokens_left:
            return False
        self.ending, self.ending_tokens = ending, self.compiler.encoder.encode(ending)
        self.next_search_at = self._compute_next_search()
        if len(self.ending_tokens) == self.tokens_left:
            self._start_ending(self.ending_tokens)
        return True

    def _force_ending(self) -> None:
        ending = self._reuse_ending()
        ending = self._search_shorter_ending(None) if ending is None else ending
        if ending is None or self._count_tokens(ending) > self.tokens_left:
            raise GenerateError(
                "no_close", f"no ending of the answer was found that fits the {self.tokens_left} tokens left"
            )
        self._start_ending(self.compiler.encoder.encode(ending))

    def _start_ending(self, ending_tokens: list[int]) -> None:
        self.ending_tokens, self.is_truncated = ending_tokens, True
        self.state = MatcherState.ENDING if ending_tokens else MatcherState.DONE

    def _reuse_ending(self) -> bytes | None:
        """An ending without a search: the tail of the last ending or of a sample answer."""
        known_endings = (self.ending, *self.compiled_schema.sample_answers)
        return self.compiled_schema.ending_search.find_tail(self.byte_matcher, known_endings)

    def _search_shorter_ending(self, ending: bytes | None) -> bytes | None:
        new_ending = self.compiled_schema.ending_search.find_shortest(self.byte_matcher)
        return min((text for text in (ending, new_ending) if text is not None), key=len, default=None)

    def _count_tokens(self, ending: bytes) -> int:
        return len(self.compiler.encoder.encode(ending))

    def _compute_next_search(self) -> int:
        """The number of tokens that will be left when the ending must be searched again."""
        slack = self.tokens_left - len(self.ending_tokens)
        return self.tokens_left - max(1, (slack - self.compiled_schema.largest_growth) // TYPICAL_GROWTH)
