"""Finds a short ending for a half-written answer.

1. The search walks forward from the answer in steps: single bytes, and hints (required keys, endings of patterns) that
   a look at the next byte cannot find; it knows nothing of the model's vocabulary.
2. Where the grammar forces the next bytes, the search takes them; elsewhere it looks one step past each option, scores
   what may follow, and takes the option that seems closest to an ending.
3. An option that closes something is taken at once, and a choice that closed nothing becomes a habit, which is not
   reconsidered while the same options return.
4. A walk that goes in circles (optional recursion) exceeds its bytes; a second pass then penalises repeated choices.
5. `shorten` tries the other options at each step of an ending; the result is always legal, but not always shortest.

A step costs a few microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

MAX_ENDING_BYTES = 8192
MAX_REPEATS = (1 << 30, 4)  # by pass: how often a choice is taken in the same situation before it is penalised
MAX_TRIALS = 100  # other options that `shorten` tries
MAX_TRIAL_BYTES = 30_000  # bytes that `shorten` walks
MAX_OPTIONS = 24  # options that a step examines, preferred ones first
MIN_STRING_OPTIONS = 64  # where so many bytes may follow, the answer stands inside a string


def to_bits(characters: bytes) -> int:
    return sum(1 << byte for byte in characters)


ALL_BYTES = (1 << 256) - 1
BACKSLASH = 0x5C
COMMA, QUOTE = 0x2C, 0x22
CLOSERS, OPENERS, BRACKETS = to_bits(b'}]"'), to_bits(b"{[,:"), to_bits(b"}]")
AFTER_STRING = to_bits(b",}]:")
OUTSIDE_STRING = to_bits(b',}]"0123456789.eE+-')  # what may stand beside a closing bracket
ENDING_BYTES = to_bits(b'"}],')
PLAIN_BYTES = ALL_BYTES ^ to_bits(bytes([BACKSLASH, *range(0x80, 0x100)]))  # no escapes, no parts of a character
PREFERRED_BYTES = b'}]"0123456789-ntfaA[{,'


@dataclass(slots=True)
class _Situation:
    """The possible continuations: the end, forced bytes, or options as a bit set over the steps."""

    can_end: bool
    forced_bytes: bytes
    option_bits: int


class _OptionScore(NamedTuple):
    """An estimate of the distance from an option to an ending. Smaller is better, earlier fields first."""

    repeats: int  # how often it was taken here, divided by the repeats that are allowed
    progress: int  # 0: closes something; 1: changes what may follow; 2: changes nothing
    is_structural: int
    cannot_end_next: int
    added_bytes: int  # its own and those that it forces, without closing brackets
    rank: int  # in the order of preference


class EndingSearch:
    """Searches one schema, in one thread. Matchers must be built with its `tokenizer`, whose tokens are the steps."""

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
        """A short ending from where the matcher stands; None if there is none within `max_bytes`."""
        for max_repeats in MAX_REPEATS:
            ending = _Walk(self, matcher.deep_copy(), max_repeats).find_ending(b"", max_bytes)
            if ending is not None:
                return ending
        return None

    def find_tail(self, matcher: LLMatcher, known_endings: Sequence[bytes]) -> bytes | None:
        """The shortest tail of a known ending that completes the answer, without a search."""
        situation = self.inspect(matcher)
        for ending in known_endings:
            for start in range(len(ending), -1, -1):  # shortest first: a longer tail might lengthen a number
                if _can_follow(situation, ending, start) and _is_ending(matcher, ending[start:]):
                    return ending[start:]
        return None

    def shorten(self, matcher: LLMatcher, ending: bytes) -> bytes:
        """The same ending, or a shorter one that differs in single choices."""
        walker, best, position, trials = matcher.deep_copy(), ending, 0, 0
        while position < len(best) and trials < min(MAX_TRIALS, MAX_TRIAL_BYTES // len(best)):
            tried_situations = set()
            for option in self.list_options(self.inspect(walker).option_bits):
                branch = walker.deep_copy()
                branch.consume_token(option)
                situation = self.inspect(branch)
                if (situation.option_bits, situation.forced_bytes) in tried_situations:
                    continue
                tried_situations.add((situation.option_bits, situation.forced_bytes))
                trials += 1
                prefix = best[:position] + self.steps[option]
                best = _Walk(self, branch, MAX_REPEATS[0]).find_ending(prefix, len(best) - 1) or best
            walker.consume_token(best[position])
            position += 1
        return best

    def list_options(self, option_bits: int) -> Iterator[int]:
        return (option for option in self.option_order if option_bits >> option & 1)

    def inspect(self, matcher: LLMatcher) -> _Situation:
        can_end = matcher.is_accepting()
        forced_bytes = b"" if can_end else matcher.compute_ff_bytes()
        if can_end or forced_bytes:
            return _Situation(can_end, forced_bytes, 0)
        matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        allowed = int.from_bytes(self.mask.tobytes(), "little") & self.step_bits
        plain = allowed & (PLAIN_BYTES | ~ALL_BYTES)
        return _Situation(can_end, forced_bytes, plain or allowed)


class _Walk:
    """One walk towards an ending. Moves its matcher."""

    def __init__(self, search: EndingSearch, matcher: LLMatcher, max_repeats: int):
        self.search = search
        self.matcher = matcher
        self.max_repeats = max_repeats
        self.times_taken = Counter[tuple[int, int]]()  # by options and choice
        self.habits: dict[int, int] = {}  # options -> the choice that closed nothing

    def find_ending(self, prefix: bytes, max_bytes: int) -> bytes | None:
        taken = bytearray(prefix)
        while len(taken) <= max_bytes:
            situation = self.search.inspect(self.matcher)
            if situation.can_end:
                return bytes(taken)
            if not situation.forced_bytes and not situation.option_bits:
                return None
            step = situation.forced_bytes or self.search.steps[self.choose_option(situation)]
            if not self.matcher.consume_tokens(list(step)):
                return None
            taken += step
        return None

    def choose_option(self, situation: _Situation) -> int:
        habit = self.habits.get(situation.option_bits)
        best = self.find_best_option(situation, only_closers=habit is not None)
        if best is not None and best[0].progress == 0:
            choice = best[1]
        elif habit is not None:
            choice = habit
        else:
            assert best is not None
            choice = best[1]
            if self.max_repeats == MAX_REPEATS[0]:
                self.habits[situation.option_bits] = choice
        self.times_taken[situation.option_bits, choice] += 1
        return choice

    def find_best_option(self, situation: _Situation, *, only_closers: bool) -> tuple[_OptionScore, int] | None:
        """The best option with its score. `only_closers` leaves out bytes that close nothing, but no hints."""
        best: tuple[_OptionScore, int] | None = None
        for rank, option in enumerate(self.search.list_options(situation.option_bits)):
            if rank == MAX_OPTIONS:
                break
            if only_closers and option < 256 and not CLOSERS >> option & 1:
                continue
            self.matcher.consume_token(option)
            next_situation = self.search.inspect(self.matcher)
            self.matcher.rollback(1)
            score = self.score_option(option, situation, next_situation, rank)
            best = min(best or (score, option), (score, option))
            if score.repeats == 0 and score.progress == 0 and score.added_bytes <= 1:
                break
        return best

    def score_option(self, option: int, now: _Situation, after: _Situation, rank: int) -> _OptionScore:
        step = self.search.steps[option]
        repeats = self.times_taken[now.option_bits, option] // self.max_repeats
        next_bytes = 1 << after.forced_bytes[0] if after.forced_bytes else after.option_bits & ALL_BYTES
        is_changed = after.can_end or bool(after.forced_bytes) or after.option_bits != now.option_bits
        is_outside_string = not now.option_bits & ALL_BYTES & ~OUTSIDE_STRING
        # After a number that only a comma can end, another digit would change the number and bring nothing nearer.
        is_only_comma = option == COMMA and not now.option_bits & BRACKETS
        if is_outside_string and (BRACKETS >> option & 1 or is_only_comma):
            return _OptionScore(repeats, 0, 0, 0, 0, rank)
        if is_changed and step.endswith(b'":'):  # a required key
            return _OptionScore(repeats, 0, 0, 0, 0, rank)
        if is_changed and step.endswith(b'"') and (after.can_end or not next_bytes & ~AFTER_STRING):
            return _OptionScore(repeats, 0, 0, 0, len(step), rank)
        return _OptionScore(
            repeats,
            progress=1 if is_changed else 2,
            is_structural=(CLOSERS | OPENERS) >> option & 1,
            cannot_end_next=int(not (after.can_end or next_bytes & ENDING_BYTES)),
            added_bytes=len(step) + len(after.forced_bytes.lstrip(b"}]")),  # the closers are due in any case
            rank=rank,
        )


def _is_ending(matcher: LLMatcher, text: bytes) -> bool:
    walker = matcher.deep_copy()
    return bool(walker.try_consume_tokens(list(text)) == len(text) and walker.is_accepting())


def _can_follow(situation: _Situation, text: bytes, start: int) -> bool:
    """Whether `text[start:]` may follow, as far as its first bytes tell. Inside a string only a quote may."""
    if situation.can_end or start == len(text):
        return situation.can_end
    if situation.forced_bytes:
        return text.startswith(situation.forced_bytes, start)
    is_inside_string = situation.option_bits.bit_count() >= MIN_STRING_OPTIONS
    return bool(situation.option_bits >> text[start] & 1) and (text[start] == QUOTE or not is_inside_string)


class _StepTokenizer:
    """The steps as a vocabulary, in the form that llguidance expects."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())
