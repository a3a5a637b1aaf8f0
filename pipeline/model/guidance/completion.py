"""A half-written answer -> the bytes that end it soonest.

The search works on bytes, whatever the model's vocabulary: its matcher knows the 256 bytes and, from the schema, the
steps that a look at the next byte cannot find (`hints`: keys that must come, endings of patterns), so that a step costs
a few microseconds. It is greedy: what is forced is taken, and at each choice what looks shortest by its consequences.
Where that runs in circles (optional recursion), a second pass takes each way a few times only. `improve` then tries
each choice the other way. The very shortest ending may be missed; what is found is legal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

LONGEST = 8192  # bytes of an ending that is still looked for
PATIENCE = (1 << 30, 4)  # how often the same way is taken where things look the same, by pass
TRIALS = 100  # other choices tried when the shortest of all is wanted
WORK = 30_000  # bytes walked in doing so
FAMILIAR = 24  # options that are looked into; of more, those that tend to be short


def bits(letters: bytes) -> int:
    return sum(1 << letter for letter in letters)


CLOSERS, OPENERS = bits(b'}]"'), bits(b"{[,:")
BRACKETS, COMMA, QUOTE = bits(b"}]"), 0x2C, 0x22
MANY = 64  # options
AFTER_TEXT = bits(b",}]:")
AROUND = bits(b',}]"0123456789.eE+-')  # what may stand where a bracket closes, and is no letter of a string
ENDING = bits(b'"}],')
BYTES = (1 << 256) - 1
PLAIN = BYTES ^ bits(bytes([0x5C, *range(0x80, 0x100)]))  # an escape or half a letter only where nothing else will do
FIRST = b'}]"0123456789-ntfaA[{,'


class Closer:
    """Looks for endings in one schema, for one thread. Matchers that it is given must be of its `tokenizer`."""

    def __init__(self, hints: Sequence[bytes]):
        self.steps = [*(bytes([byte]) for byte in range(256)), *hints]
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary([*self.steps, b"<end>"])))
        self.mask = np.zeros((len(self.steps) + 32) // 32, np.int32)
        self.known = (1 << len(self.steps)) - 1
        self.order = [*range(256, len(self.steps)), *FIRST, *(byte for byte in range(256) if byte not in FIRST)]

    def shortest(self, matcher: LLMatcher, *, most: int = LONGEST) -> bytes | None:
        """A short ending from where the matcher stands, which stays there; None if there is none in `most` bytes."""
        for patience in PATIENCE:
            found = self._follow(matcher.deep_copy(), b"", most, patience)
            if found is not None:
                return found
        return None

    def tail(self, matcher: LLMatcher, texts: Sequence[bytes]) -> bytes | None:
        """The least that ends the answer from where the matcher stands, of the first of the texts whose end does."""
        state = self._look(matcher)
        for text in texts:
            for start in range(len(text), -1, -1):  # the least: more might lengthen a number that stands there
                if _may_follow(state, text, start) and self._ends(matcher, text[start:]):
                    return text[start:]
        return None

    def _ends(self, matcher: LLMatcher, text: bytes) -> bool:
        walker = matcher.deep_copy()
        return bool(walker.try_consume_tokens(list(text)) == len(text) and walker.is_accepting())

    def improve(self, matcher: LLMatcher, ending: bytes) -> bytes:
        """The same ending, or a shorter one that a single other choice leads to."""
        walker, best, at, trials = matcher.deep_copy(), ending, 0, 0
        while at < len(best) and trials < min(TRIALS, WORK // len(best)):
            known = set()
            for option in self._options(self._look(walker).options):
                after = walker.deep_copy()
                after.consume_token(option)
                state = self._look(after)
                if (state.options, state.forced) in known:
                    continue
                known.add((state.options, state.forced))
                trials += 1
                head = best[:at] + self.steps[option]
                best = self._follow(after, head, len(best) - 1, PATIENCE[0]) or best
            walker.consume_token(best[at])
            at += 1
        return best

    def _follow(self, matcher: LLMatcher, head: bytes, most: int, patience: int) -> bytes | None:
        taken, visits, habits = bytearray(head), Counter[tuple[int, int]](), dict[int, int]()
        while len(taken) <= most:
            state = self._look(matcher)
            if state.over:
                return bytes(taken)
            if not state.forced and not state.options:
                return None
            step = state.forced or self.steps[self._choose(matcher, state, visits, habits, patience)]
            if not matcher.consume_tokens(list(step)):
                return None
            taken += step
        return None

    def _choose(
        self, matcher: LLMatcher, state: _State, visits: Counter[tuple[int, int]], habits: dict[int, int], patience: int
    ) -> int:
        """The option whose consequences look shortest; a closing one at once. What stays the same becomes a habit."""
        best: tuple[tuple[int, ...], int] | None = None
        habit = habits.get(state.options)
        for rank, option in enumerate(self._options(state.options)):
            if rank == FAMILIAR:
                break
            if habit is not None and option < 256 and not CLOSERS >> option & 1:
                continue
            matcher.consume_token(option)
            after = self._look(matcher)
            matcher.rollback(1)
            tired = visits[state.options, option] // patience
            key = (tired, *self._merit(option, state, after), rank)
            best = min(best or (key, option), (key, option))
            if key[:2] == (0, 0) and key[4] <= 1:
                break
        if habit is not None and (best is None or best[0][1] > 0):
            choice = habit
        else:
            assert best is not None
            choice = best[1]
            if best[0][1] > 0 and patience == PATIENCE[0]:
                habits[state.options] = choice
        visits[state.options, choice] += 1
        return choice

    def _merit(self, option: int, state: _State, after: _State) -> tuple[int, int, int, int]:
        """How good an option looks, smaller is better: it closes, changes anything, opens nothing, can be closed."""
        step = self.steps[option]
        following = 1 << after.forced[0] if after.forced else after.options & BYTES
        moved = after.over or bool(after.forced) or after.options != state.options
        if not state.options & BYTES & ~AROUND and (BRACKETS >> option & 1 or self._only_comma(option, state)):
            return 0, 0, 0, 0
        if moved and step.endswith(b'":'):
            return 0, 0, 0, 0
        if moved and step.endswith(b'"') and (after.over or not following & ~AFTER_TEXT):
            return 0, 0, 0, len(step)
        structural = (CLOSERS | OPENERS) >> option & 1
        ends = after.over or bool(following & ENDING)
        return 1 if moved else 2, structural, int(not ends), len(step) + len(after.forced)

    def _only_comma(self, option: int, state: _State) -> bool:
        """After a number that nothing else can end: one more digit would change it and bring nothing nearer."""
        return option == COMMA and not state.options & BRACKETS

    def _options(self, options: int) -> Iterator[int]:
        return (option for option in self.order if options >> option & 1)

    def _look(self, matcher: LLMatcher) -> _State:
        over = matcher.is_accepting()
        forced = b"" if over else matcher.compute_ff_bytes()
        if over or forced:
            return _State(over, forced, 0)
        matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        allowed = int.from_bytes(self.mask.tobytes(), "little") & self.known
        return _State(over, forced, (allowed & ~BYTES | allowed & PLAIN) or allowed)


@dataclass(slots=True)
class _State:
    """What may come next: forced bytes, or options, as bits; `over` where the answer may end."""

    over: bool
    forced: bytes
    options: int


def _may_follow(state: _State, text: bytes, start: int) -> bool:
    """As far as the next byte tells. Where nearly all may come it is a string, which only a quote ends."""
    if state.over or start == len(text):
        return state.over
    if state.forced:
        return text.startswith(state.forced, start)
    return bool(state.options >> text[start] & 1) and (text[start] == QUOTE or state.options.bit_count() < MANY)


class _Vocabulary:
    """Steps as tokens, as llguidance wants to be told."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())
