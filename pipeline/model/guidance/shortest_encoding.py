"""Encodes bytes in the fewest tokens of a vocabulary. Special tokens stand for no bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llguidance import LLTokenizer

MAX_CACHED_ENCODINGS = 10_000
MAX_TOKEN_BYTES = 16  # longer tokens are not used


@dataclass(frozen=True, slots=True)
class ShortestEncoder:
    token_bytes: Sequence[bytes]  # by token id
    token_ids: Mapping[bytes, int]  # of tokens up to MAX_TOKEN_BYTES
    cache: dict[bytes, list[int]] = field(default_factory=dict)  # the same endings are encoded again and again

    @classmethod
    def from_tokenizer(cls, tokenizer: LLTokenizer, vocab_size: int) -> ShortestEncoder:
        token_bytes = [
            b"" if tokenizer.is_special_token(token) else tokenizer.decode_bytes([token]) for token in range(vocab_size)
        ]
        lowest_ids_last = reversed(list(enumerate(token_bytes)))
        token_ids = {text: token for token, text in lowest_ids_last if 0 < len(text) <= MAX_TOKEN_BYTES}
        return cls(token_bytes, token_ids)

    def encode(self, text: bytes) -> list[int]:
        """
        >>> ShortestEncoder((), {b"a": 0, b"b": 1, b"ab": 2}).encode(b"aab")
        [0, 2]
        """
        if text not in self.cache:
            if len(self.cache) > MAX_CACHED_ENCODINGS:
                self.cache.clear()
            self.cache[text] = self._find_shortest(text)
        return self.cache[text]

    def _find_shortest(self, text: bytes) -> list[int]:
        fewest = [(0, 0)] + [(len(text) + 1, 0)] * len(text)  # by end: the number of tokens, the start of the last one
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - MAX_TOKEN_BYTES), end):
                if fewest[start][0] + 1 < fewest[end][0] and text[start:end] in self.token_ids:
                    fewest[end] = (fewest[start][0] + 1, start)
        tokens, end = [], len(text)
        while end:
            start = fewest[end][1]
            tokens.append(self.token_ids[text[start:end]])
            end = start
        return tokens[::-1]
