"""What a kind of answer makes of a row: the tokens that the model reads, and what is asked about them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.model.families.base import EncodedPrompt
from pipeline.types import Continuation, Pooling, Turn


class EncodedRow(NamedTuple):
    turns: tuple[Turn, ...]  # as the model reads them
    prompt: EncodedPrompt
    continuations: tuple[Continuation, ...] = ()  # whose probabilities are asked
    pooling: Pooling | None = None  # of the vector that is asked


class RowEncoder(Protocol):
    def encode_turns(self, turns: tuple[Turn, ...]) -> EncodedRow: ...
