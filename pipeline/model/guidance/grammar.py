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
from pipeline.model.guidance.completion import Closer
from pipeline.model.guidance.completion_hints import hints, least, sample
from pipeline.model.guidance.shortest_tokens import Spelling

SHARE = 8  # a token is expected to lengthen the ending by less than this, one large object aside


@dataclass(frozen=True, slots=True)
class Rules:
    """What is known of one schema, once for all rows."""

    tokens: LLMatcher  # at the start, over the model's vocabulary
    start: LLMatcher  # the same over the closer's steps
    closer: Closer
    ending: bytes  # the shortest answer there is
    samples: tuple[bytes, bytes]  # answers with one of everything, without and with what is optional
    minimum: int  # in tokens
    leap: int  # tokens by which one token may lengthen the ending, about


class Grammars:
    """Matchers for one tokenizer; what a schema needs is prepared once."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop: Sequence[int]):
        self.tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(stop))
        self.spelling = Spelling.of(self.tokenizer, vocab_size)
        self.stop = frozenset(stop)
        self.thought: int | None = tokenizer.token_to_id("</think>")
        self.pause = tokenizer.encode("\n\n", add_special_tokens=False).ids
        self.rules: dict[str, Rules] = {}

    def matcher(self, schema_text: str, *, budget: int, thinking: int | None = None) -> Matcher:
        """For one row: `budget` tokens for the answer and, for a thinking model, at most `thinking` before it."""
        rules = self.prepare(schema_text)
        if budget < rules.minimum:
            raise GenerateError(
                "no_close",
                f"no answer of this schema fits {budget} tokens: raise max_new_tokens to {rules.minimum} or more",
            )
        if thinking is not None and self.thought is None:
            raise GenerateError("thinking", "this checkpoint has no </think>: leave out answer.thinking")
        return Matcher(self, rules, budget, thinking)

    def minimum(self, schema_text: str) -> int:
        """Tokens of the shortest answer."""
        return self.prepare(schema_text).minimum

    def prepare(self, schema_text: str) -> Rules:
        if schema_text not in self.rules:
            self.rules[schema_text] = self._prepare(schema_text)
        return self.rules[schema_text]

    def _prepare(self, schema_text: str) -> Rules:
        grammar = LLMatcher.grammar_from_json_schema(schema_text, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GenerateError("schema", f"the grammar cannot hold this schema: {matcher.get_error()}")
        schema = json.loads(schema_text)
        closer = Closer(hints(schema))
        start = LLMatcher(closer.tokenizer, grammar, log_level=0)
        ending = closer.shortest(start)
        if ending is None:
            raise GenerateError("no_close", "no answer of this schema was found: does it need to contain itself?")
        ending = closer.improve(start, ending)
        minimum = len(self.spelling.tokens(ending))
        leap = least(schema) * minimum // max(1, len(ending)) + 1
        samples = sample(schema, optional=False), sample(schema, optional=True)
        return Rules(matcher, start, closer, ending, samples, minimum, leap)


def minimum(schema_text: str, tokenizer: Tokenizer) -> int:
    """Tokens of the shortest answer, for who has a tokenizer and no model."""
    return Grammars(tokenizer, vocab_size=tokenizer.get_vocab_size(), stop=[0]).minimum(schema_text)


class Matcher:
    """The state of one row. `left` tokens may still be taken for the answer."""

    def __init__(self, grammars: Grammars, rules: Rules, budget: int, thinking: int | None):
        self.grammars = grammars
        self.rules = rules
        self.left = budget
        self.thinking = thinking  # tokens left to think; None when that is over, or never was
        self.grammar = rules.tokens.deep_copy()
        self.written = rules.start.deep_copy()
        self.pending: list[int] = []  # between thinking and the answer
        self.ending = rules.ending  # of the answer as it stood at the last look
        self.plan = grammars.spelling.tokens(rules.ending)
        self.cut = budget == len(self.plan)  # the rest is the plan
        self.done = False
        self.look_at = self._next_look()

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i of word i // 32, over the model's vocabulary."""
        bits = mask.view(np.uint32)
        if self.cut or self.pending or (self.thinking is not None and self.forced()):
            token = self.forced()[0]
            bits.fill(0)
            bits[token // 32] = 1 << token % 32
        elif self.thinking is not None:
            bits.fill(0xFFFFFFFF)
            for stop in self.grammars.stop:
                bits[stop // 32] &= 0xFFFFFFFF ^ (1 << stop % 32)
        else:
            self.grammar.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def forced(self) -> list[int]:
        """The tokens that must come next, none if there is a choice. Each is to be accepted, too."""
        if self.done:
            return []
        if self.thinking is not None:
            over = self.thinking <= 1 + len(self.grammars.pause)
            return [self.grammars.thought] if over and self.grammars.thought is not None else []
        if self.pending or self.cut:
            return list(self.pending or self.plan)
        tokens: list[int] = self.grammar.compute_ff_tokens()
        return tokens if len(tokens) < self.left - len(self.plan) else []

    def accept(self, token: int) -> bool:
        """Take a token. False: it is not taken, because no ending would fit after it."""
        if self.thinking is not None:
            self._think(token)
        elif self.pending:
            self.pending.pop(0)
        elif token in self.grammars.stop and self.grammar.is_accepting():
            self.done = True
        else:
            return self._answer(token)
        return True

    def end(self) -> None:
        """Force the ending of the answer as it stands; `forced()` then has all of it."""
        if not self.done and not self.cut:
            self._give_up()

    def _think(self, token: int) -> None:
        assert self.thinking is not None
        self.thinking -= 1
        if token == self.grammars.thought:
            self.thinking, self.pending = None, list(self.grammars.pause)

    def _answer(self, token: int) -> bool:
        step = self.grammars.spelling.texts[token]
        looking = not self.cut and self.left - 1 <= self.look_at
        before = (self.grammar.deep_copy(), self.written.deep_copy()) if looking else None
        if not (self.grammar.consume_token(token) and self.written.consume_tokens(list(step))):
            why = self.grammar.get_error() or self.written.get_error()
            raise GenerateError("grammar", f"the grammar did not follow the answer: {why}")
        self.left -= 1
        if self.cut:
            self.plan = self.plan[1:]
        elif before and not self._look():
            self.grammar, self.written = before
            self.left += 1
            self._give_up()
            return False
        self.done = self.grammar.is_stopped() or (self.cut and not self.plan)
        return True

    def _look(self) -> bool:
        """Find an ending from here; False if none fits the tokens left."""
        ending = self._known()
        if ending is None or len(self.grammars.spelling.tokens(ending)) > self.left - 2:
            ending = self._shorter(ending)
        if ending is None or len(self.grammars.spelling.tokens(ending)) > self.left:
            return False
        self.ending, self.plan = ending, self.grammars.spelling.tokens(ending)
        self.cut = len(self.plan) == self.left
        self.look_at = self._next_look()
        return True

    def _give_up(self) -> None:
        """Force the ending of the answer as it stands, whatever was to come."""
        ending = self._known()
        ending = self._shorter(None) if ending is None else ending
        plan = None if ending is None else self.grammars.spelling.tokens(ending)
        if plan is None or len(plan) > self.left:
            raise GenerateError("no_close", f"no ending of the answer was found that fits the {self.left} tokens left")
        self.plan, self.cut, self.done = plan, True, not plan

    def _known(self) -> bytes | None:
        """An ending without a search: what is left of the one known before, or the end of a sample."""
        return self.rules.closer.tail(self.written, (self.ending, *self.rules.samples))

    def _shorter(self, ending: bytes | None) -> bytes | None:
        found = self.rules.closer.shortest(self.written)
        return min((text for text in (ending, found) if text is not None), key=len, default=None)

    def _next_look(self) -> int:
        """How many tokens will be left when an ending must be looked for again."""
        slack = self.left - len(self.plan)
        return self.left - max(1, (slack - self.rules.leap) // SHARE)
