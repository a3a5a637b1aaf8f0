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

MAX_ENDING_BYTES = 8192  # bytes of an ending that is still looked for
MAX_REPEATS = (1 << 30, 4)  # how often the same way is taken where things look the same, by pass
MAX_TRIALS = 100  # other choices tried when the shortest of all is wanted
MAX_TRIAL_BYTES = 30_000  # bytes walked in doing so
MAX_OPTIONS = 24  # options that are looked into; of more, those that tend to be short


def to_bits(characters: bytes) -> int:
    return sum(1 << letter for letter in characters)


CLOSERS, OPENERS = to_bits(b'}]"'), to_bits(b"{[,:")
BRACKETS, COMMA, QUOTE = to_bits(b"}]"), 0x2C, 0x22
MIN_STRING_OPTIONS = 64  # options
AFTER_STRING = to_bits(b",}]:")
OUTSIDE_STRING = to_bits(b',}]"0123456789.eE+-')  # what may stand where a bracket closes, and is no letter of a string
ENDING_BYTES = to_bits(b'"}],')
ALL_BYTES = (1 << 256) - 1
PLAIN_BYTES = ALL_BYTES ^ to_bits(
    bytes([0x5C, *range(0x80, 0x100)])
)  # an escape or half a letter only where nothing else will do
PREFERRED_BYTES = b'}]"0123456789-ntfaA[{,'


class EndingSearch:
    """Looks for endings in one schema, for one thread. Matchers that it is given must be of its `tokenizer`."""

    def __init__(self, hints: Sequence[bytes]):
        self.steps = [*(bytes([byte]) for byte in range(256)), *hints]
        self.tokenizer = LLTokenizer(TokenizerWrapper(_StepTokenizer([*self.steps, b"<end>"])))
        self.mask = np.zeros((len(self.steps) + 32) // 32, np.int32)
        self.step_bits = (1 << len(self.steps)) - 1
        self.option_order = [
            *range(256, len(self.steps)),
            *PREFERRED_BYTES,
            *(byte for byte in range(256) if byte not in PREFERRED_BYTES),
        ]

    def find_shortest(self, matcher: LLMatcher, *, max_bytes: int = MAX_ENDING_BYTES) -> bytes | None:
        """A short ending from where the matcher stands, which stays there; None if there is none in `most` bytes."""
        for patience in MAX_REPEATS:
            found = self._search_greedily(matcher.deep_copy(), b"", max_bytes, patience)
            if found is not None:
                return found
        return None

    def find_tail(self, matcher: LLMatcher, known_endings: Sequence[bytes]) -> bytes | None:
        """The least that ends the answer from where the matcher stands, of the first of the texts whose end does."""
        state = self._inspect(matcher)
        for text in known_endings:
            for start in range(len(text), -1, -1):  # the least: more might lengthen a number that stands there
                if _can_follow(state, text, start) and self._can_end_with(matcher, text[start:]):
                    return text[start:]
        return None

    def _can_end_with(self, matcher: LLMatcher, text: bytes) -> bool:
        walker = matcher.deep_copy()
        return bool(walker.try_consume_tokens(list(text)) == len(text) and walker.is_accepting())

    def shorten(self, matcher: LLMatcher, ending: bytes) -> bytes:
        """The same ending, or a shorter one that a single other choice leads to."""
        walker, best, at, trials = matcher.deep_copy(), ending, 0, 0
        while at < len(best) and trials < min(MAX_TRIALS, MAX_TRIAL_BYTES // len(best)):
            known = set()
            for option in self._list_options(self._inspect(walker).option_bits):
                after = walker.deep_copy()
                after.consume_token(option)
                state = self._inspect(after)
                if (state.option_bits, state.forced_bytes) in known:
                    continue
                known.add((state.option_bits, state.forced_bytes))
                trials += 1
                head = best[:at] + self.steps[option]
                best = self._search_greedily(after, head, len(best) - 1, MAX_REPEATS[0]) or best
            walker.consume_token(best[at])
            at += 1
        return best

    def _search_greedily(self, matcher: LLMatcher, prefix: bytes, max_bytes: int, max_repeats: int) -> bytes | None:
        taken, visits, habits = bytearray(prefix), Counter[tuple[int, int]](), dict[int, int]()
        while len(taken) <= max_bytes:
            state = self._inspect(matcher)
            if state.can_end:
                return bytes(taken)
            if not state.forced_bytes and not state.option_bits:
                return None
            step = state.forced_bytes or self.steps[self._choose_step(matcher, state, visits, habits, max_repeats)]
            if not matcher.consume_tokens(list(step)):
                return None
            taken += step
        return None

    def _choose_step(
        self,
        matcher: LLMatcher,
        state: _SearchState,
        visits: Counter[tuple[int, int]],
        habitual_steps: dict[int, int],
        max_repeats: int,
    ) -> int:
        """The option whose consequences look shortest; a closing one at once. What stays the same becomes a habit."""
        best: tuple[tuple[int, ...], int] | None = None
        habit = habitual_steps.get(state.option_bits)
        for rank, option in enumerate(self._list_options(state.option_bits)):
            if rank == MAX_OPTIONS:
                break
            if habit is not None and option < 256 and not CLOSERS >> option & 1:
                continue
            matcher.consume_token(option)
            after = self._inspect(matcher)
            matcher.rollback(1)
            tired = visits[state.option_bits, option] // max_repeats
            key = (tired, *self._score_option(option, state, after), rank)
            best = min(best or (key, option), (key, option))
            if key[:2] == (0, 0) and key[4] <= 1:
                break
        if habit is not None and (best is None or best[0][1] > 0):
            choice = habit
        else:
            assert best is not None
            choice = best[1]
            if best[0][1] > 0 and max_repeats == MAX_REPEATS[0]:
                habitual_steps[state.option_bits] = choice
        visits[state.option_bits, choice] += 1
        return choice

    def _score_option(self, option: int, state: _SearchState, next_state: _SearchState) -> tuple[int, int, int, int]:
        """How good an option looks, smaller is better: it closes, changes anything, opens nothing, can be closed."""
        step = self.steps[option]
        following = 1 << next_state.forced_bytes[0] if next_state.forced_bytes else next_state.option_bits & ALL_BYTES
        moved = next_state.can_end or bool(next_state.forced_bytes) or next_state.option_bits != state.option_bits
        if not state.option_bits & ALL_BYTES & ~OUTSIDE_STRING and (
            BRACKETS >> option & 1 or self._is_only_comma(option, state)
        ):
            return 0, 0, 0, 0
        if moved and step.endswith(b'":'):
            return 0, 0, 0, 0
        if moved and step.endswith(b'"') and (next_state.can_end or not following & ~AFTER_STRING):
            return 0, 0, 0, len(step)
        structural = (CLOSERS | OPENERS) >> option & 1
        ends = next_state.can_end or bool(following & ENDING_BYTES)
        return 1 if moved else 2, structural, int(not ends), len(step) + len(next_state.forced_bytes)

    def _is_only_comma(self, option: int, state: _SearchState) -> bool:
        """After a number that nothing else can end: one more digit would change it and bring nothing nearer."""
        return option == COMMA and not state.option_bits & BRACKETS

    def _list_options(self, option_bits: int) -> Iterator[int]:
        return (option for option in self.option_order if option_bits >> option & 1)

    def _inspect(self, matcher: LLMatcher) -> _SearchState:
        over = matcher.is_accepting()
        forced = b"" if over else matcher.compute_ff_bytes()
        if over or forced:
            return _SearchState(over, forced, 0)
        matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        allowed = int.from_bytes(self.mask.tobytes(), "little") & self.step_bits
        return _SearchState(over, forced, (allowed & ~ALL_BYTES | allowed & PLAIN_BYTES) or allowed)


@dataclass(slots=True)
class _SearchState:
    """What may come next: forced bytes, or options, as bits; `over` where the answer may end."""

    can_end: bool
    forced_bytes: bytes
    option_bits: int


def _can_follow(state: _SearchState, text: bytes, start: int) -> bool:
    """As far as the next byte tells. Where nearly all may come it is a string, which only a quote ends."""
    if state.can_end or start == len(text):
        return state.can_end
    if state.forced_bytes:
        return text.startswith(state.forced_bytes, start)
    return bool(state.option_bits >> text[start] & 1) and (
        text[start] == QUOTE or state.option_bits.bit_count() < MIN_STRING_OPTIONS
    )


class _StepTokenizer:
    """Steps as tokens, as llguidance wants to be told."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())
