"""A half-written answer -> the bytes that end it soonest.

The search works on bytes, whatever the model's vocabulary: its matcher knows the 256 bytes and, from the schema, the
steps that a look at the next byte cannot find (`hints`: keys that must come, endings of patterns), so that a step costs
a few microseconds. It is greedy: what is forced is taken, and at each choice what looks shortest by its consequences.
Where that runs in circles (optional recursion), a second pass takes each way a few times only. `improve` then tries
each choice the other way. The very shortest ending may be missed; what is found is legal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

LONGEST = 8192  # bytes of an ending that is still looked for
PATIENCE = (1 << 30, 4)  # how often the same way is taken where things look the same, by pass
TRIALS = 100  # other choices tried when the shortest of all is wanted
WORK = 30_000  # bytes walked in doing so
CLOSERS, OPENERS = (b"}", b"]", b'"'), (b"{", b"[", b",", b":")
AROUND = frozenset(b',}]"0123456789.eE+-')  # what may stand where a bracket closes, and is no letter of a string
FAMILIAR = 24  # options that are looked into; of more, those that tend to be short


class Closer:
    """Looks for endings in one schema. Matchers that it is given must be of its `tokenizer`."""

    def __init__(self, hints: Sequence[bytes]):
        self.steps = [*(bytes([byte]) for byte in range(256)), *hints]
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary([*self.steps, b"<end>"])))
        self.words = (len(self.steps) + 32) // 32
        self.ranks = {option: rank for rank, option in enumerate(b'}]"0123456789-ntfaA[{,')}

    def shortest(self, matcher: LLMatcher, *, most: int = LONGEST) -> bytes | None:
        """A short ending from where the matcher stands, which stays there; None if there is none in `most` bytes."""
        for patience in PATIENCE:
            found = self._follow(matcher.deep_copy(), b"", most, patience)
            if found is not None:
                return found
        return None

    def improve(self, matcher: LLMatcher, ending: bytes) -> bytes:
        """The same ending, or a shorter one that a single other choice leads to."""
        walker, best, at, trials = matcher.deep_copy(), ending, 0, 0
        while at < len(best) and trials < min(TRIALS, WORK // len(best)):
            known = set()
            for option in self._look(walker).options:
                after = walker.deep_copy()
                after.consume_token(option)
                state = self._look(after)
                if (state.seen, state.forced) in known:
                    continue
                known.add((state.seen, state.forced))
                trials += 1
                head = best[:at] + self.steps[option]
                best = self._follow(after, head, len(best) - 1, PATIENCE[0]) or best
            walker.consume_token(best[at])
            at += 1
        return best

    def _follow(self, matcher: LLMatcher, head: bytes, most: int, patience: int) -> bytes | None:
        taken, visits, habits = bytearray(head), Counter[tuple[bytes, int]](), dict[bytes, int]()
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
        self,
        matcher: LLMatcher,
        state: _State,
        visits: Counter[tuple[bytes, int]],
        habits: dict[bytes, int],
        patience: int,
    ) -> int:
        """The option whose consequences look shortest; a closing one at once."""
        best: tuple[tuple[int, ...], int] | None = None
        options = sorted(state.options, key=lambda option: (self.ranks.get(option, 0 if option > 255 else 99), option))
        for rank, option in enumerate(options[:FAMILIAR]):
            tired = visits[state.seen, option] // patience
            if state.seen in habits and self.steps[option] not in CLOSERS and option < 256 and not tired:
                continue
            matcher.consume_token(option)
            after = self._look(matcher)
            matcher.rollback(1)
            key = (tired, *_merit(self.steps[option], state, after), rank)
            best = min(best or (key, option), (key, option))
            if key[:2] == (0, 0):
                break
        if best is None or (best[0][1] > 0 and state.seen in habits):
            choice = habits[state.seen]
        else:
            choice = best[1]
            if best[0][1] > 0 and patience == PATIENCE[0]:
                habits[state.seen] = choice
        visits[state.seen, choice] += 1
        return choice

    def _look(self, matcher: LLMatcher) -> _State:
        return _State(matcher, self.words, len(self.steps))


class _State:
    """What may come next: forced bytes, or options; `over` where the answer may end."""

    __slots__ = ("forced", "options", "over", "seen")

    def __init__(self, matcher: LLMatcher, words: int, count: int):
        self.over = matcher.is_accepting()
        self.forced = b"" if self.over else matcher.compute_ff_bytes()
        mask = np.zeros(words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self.seen = mask.tobytes()
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:count]).tolist()
        plain = [option for option in allowed if option != 0x5C and not 0x80 <= option < 0x100]
        self.options = plain or allowed  # an escape or half a letter only where nothing else will do


class _Vocabulary:
    """Steps as tokens, as llguidance wants to be told."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def _merit(step: bytes, state: _State, after: _State) -> tuple[int, int, int, int]:
    """How good an option looks, smaller is better: whether it closes, changes anything, opens nothing, can be closed."""
    following = set(after.forced[:1]) or set(after.options)
    moved = after.over or bool(after.forced) or after.seen != state.seen
    closed = after.over or following <= set(b",}]:")
    if step in (b"}", b"]") and AROUND.issuperset(state.options):
        return 0, 0, 0, 0
    if moved and (step.endswith(b'":') or (step == b'"' and closed)):
        return 0, 0, 0, 0
    ends = after.over or bool(following & set(b'"}],'))
    return 1 if moved else 2, int(step in CLOSERS or step in OPENERS), int(not ends), len(step) + len(after.forced)
