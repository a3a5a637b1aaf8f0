"""Which states of a sequence its vector is made of, and their sum while they are computed.

A prompt may be computed in several steps. The vector is the state of its last token, or the mean of the states of all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Pooling

Span = tuple[int, int]  # the first and the end of the tokens whose states are summed


class VectorPooler:
    def __init__(self, pooling: Pooling, prompt_tokens: int):
        self.method, self.prompt_tokens = pooling.method, prompt_tokens
        self.total: NDArray[np.float64] | float = 0.0

    def find_span(self, computed_tokens: int, token_count: int) -> Span | None:
        """Of a step over so many tokens, counted from its first one.

        >>> mean, last = (VectorPooler(Pooling("language", method), 10) for method in ("mean", "last"))
        >>> mean.find_span(4, 3), last.find_span(4, 3), last.find_span(7, 3)
        ((0, 3), None, (2, 3))
        """
        if self.method == "mean":
            return 0, token_count
        return (token_count - 1, token_count) if computed_tokens + token_count >= self.prompt_tokens else None

    def add_states(self, total: NDArray[np.float32]) -> None:
        self.total = self.total + total.astype(np.float64)

    def compute_vector(self) -> NDArray[np.float32]:
        return np.asarray(self.total / (self.prompt_tokens if self.method == "mean" else 1), np.float32)
