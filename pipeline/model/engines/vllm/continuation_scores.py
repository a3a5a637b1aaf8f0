"""Learns from vLLM how probable the continuations of a prompt are.

Where vLLM writes a token, it tells how probable given other tokens would have been there. So it is asked for one token
behind the prompt and behind every beginning of a continuation. All these questions begin with the prompt, which its
prefix cache computes once: a question costs its own tokens, and those of the last unfinished block of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.types import Continuation

MAX_TOKENS = 128  # that vLLM tells about at one place


class TokenQuestion(NamedTuple):
    """What is asked behind one beginning: the probability of tokens, and which continuations each is a part of."""

    beginning: tuple[int, ...]
    parts: Mapping[int, Sequence[int]]


def plan_questions(continuations: Sequence[Continuation]) -> list[TokenQuestion]:
    """Short beginnings first, so that others find the prompt in the cache.

    >>> plan_questions([Continuation((1,), 0, ""), Continuation((2, 3), 1, ""), Continuation((2, 4), 1, "")])
    [TokenQuestion(beginning=(), parts={1: [0]}), TokenQuestion(beginning=(2,), parts={3: [1], 4: [2]})]
    """
    asked: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for number, continuation in enumerate(continuations):
        tokens = continuation.token_ids
        for place in range(continuation.scored_from, len(tokens)):
            asked.setdefault(tokens[:place], {}).setdefault(tokens[place], []).append(number)
    return [
        TokenQuestion(beginning, dict(list(parts.items())[first : first + MAX_TOKENS]))
        for beginning, parts in sorted(asked.items(), key=lambda item: len(item[0]))
        for first in range(0, len(parts), MAX_TOKENS)
    ]


class ContinuationScores:
    """The log-probabilities of a request's continuations, as far as vLLM has told them."""

    def __init__(self, continuations: Sequence[Continuation]):
        self.logprobs = [0.0] * len(continuations)
        self.missing_count = len(plan_questions(continuations))

    def add(self, question: TokenQuestion, logprobs: Mapping[int, float]) -> bool:
        """Whether all are known now."""
        for token, continuations in question.parts.items():
            for number in continuations:
                self.logprobs[number] += logprobs[token]
        self.missing_count -= 1
        return not self.missing_count
