"""Blocks of a prompt, by which sequences find what their prompts have in common, and runs that hold such blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 32


class PromptBlock(NamedTuple):
    end: int  # in tokens of the prompt
    hash: bytes


class ClipSpan(NamedTuple):
    """Where a clip lies in a prompt."""

    key: str
    first: int  # its first pad token
    end: int  # after its last pad token


def hash_blocks(token_ids: NDArray[Any], positions: NDArray[Any], clips: Sequence[ClipSpan]) -> tuple[PromptBlock, ...]:
    """Blocks end at the edges of clips, too. The last token is in none: it is computed for its logits."""
    rows = np.ascontiguousarray(np.concatenate([token_ids[None], positions]).T, np.int64)
    keys = {clip.first: clip.key.encode() for clip in clips}
    edges = sorted({0, len(rows), *(edge for clip in clips for edge in clip[1:])})
    ends = [end for low, high in pairwise(edges) for end in (*range(low + BLOCK_TOKENS, high, BLOCK_TOKENS), high)]
    hasher, blocks = hashlib.blake2b(digest_size=16), []
    for start, end in pairwise([0, *ends[:-1]]):
        hasher.update(rows[start:end].data)
        hasher.update(keys.get(start, b""))
        blocks.append(PromptBlock(end, hasher.digest()))
    return tuple(blocks)


@dataclass(eq=False, slots=True)
class PrefixRun:
    """A run of the KV cache from which others copy: that of a running sequence, or one that is kept."""

    start: int
    blocks: Sequence[PromptBlock]
    planned_rows: dict[int, int]  # with linear attention: the row for the state after a block, by the block's end
    number: int  # grows with each run
    state_rows: dict[int, int] = field(default_factory=dict)  # those that are written
    certain_tokens: int = 0  # whose keys and values are in the run

    @property
    def tokens(self) -> int:
        return self.blocks[-1].end if self.blocks else 0

    def mark_computed(self, tokens: int, state_row: int | None) -> None:
        self.certain_tokens = tokens
        if state_row is not None:
            self.state_rows[tokens] = state_row

    def has_computed(self, end: int) -> bool:
        return self.certain_tokens >= end and (end not in self.planned_rows or end in self.state_rows)
