"""The states of linear-attention layers, and how the sequences of a step map to them.

A linear-attention layer keeps a matrix per head and the last inputs of its convolution in place of keys and values.
Computing a token changes that state, so a step must never be applied twice. Each slot has two rows: a step reads one
and writes the other, and the sequence changes over to it only once the step is certain. A step that fails, is split or
is launched in vain leaves the state as it was. A sequence that begins reads the row of zeros, which is never written.
States that other sequences begin with have rows of their own: the step that reaches one writes it there, and the next
step of each sequence reads it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.engines.torch.memory import MAX_CHUNK_SIZE, MAX_GROUP_CHUNKS, SLOTS_PER_KEPT_ROW

ZERO_ROW, SINK_ROW, RESERVED_ROWS = 0, 1, 2  # the sink takes what padding writes


def list_kept_rows(slots: int) -> range:
    """The rows for states that other sequences begin with.

    >>> list_kept_rows(4)
    range(10, 11)
    """
    first = RESERVED_ROWS + 2 * slots
    return range(first, first + -(-slots // SLOTS_PER_KEPT_ROW))


def find_state_rows(slot: int, side: int, *, is_new: bool) -> tuple[int, int]:
    """The row that a step reads and the row that it writes.

    >>> find_state_rows(0, 0, is_new=True), find_state_rows(0, 1, is_new=False), find_state_rows(3, 0, is_new=False)
    ((0, 3), (3, 2), (8, 9))
    """
    first = RESERVED_ROWS + 2 * slot
    return ZERO_ROW if is_new else first + side, first + 1 - side


@dataclass(frozen=True, slots=True)
class StateShape:
    """The state of one sequence on this rank."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    convolution_width: int
    convolution_inputs: int  # that are kept: one fewer than the kernel has
    has_kernels: bool = False  # those of fla-core compute the layers

    def count_bytes(self, item_bytes: int) -> int:
        """The rows of a slot with its share of kept ones, in all layers. The matrices are in float32, as computed."""
        matrices = self.heads * self.key_dim * self.value_dim * 4
        row = self.layers * (matrices + self.convolution_width * self.convolution_inputs * item_bytes)
        return 2 * row + row // SLOTS_PER_KEPT_ROW


@dataclass(slots=True)
class LinearStates:
    matrices: list[Tensor]  # of each layer [rows, heads, key dim, value dim]
    inputs: list[Tensor]  # of each layer [rows, convolution inputs, convolution width]

    @classmethod
    def allocate(cls, shape: StateShape, slots: int, dtype: torch.dtype, device: torch.device) -> LinearStates:
        rows = list_kept_rows(slots).stop
        matrix, inputs = (
            (shape.heads, shape.key_dim, shape.value_dim),
            (shape.convolution_inputs, shape.convolution_width),
        )
        return cls(
            [torch.zeros(rows, *matrix, dtype=torch.float32, device=device) for _ in range(shape.layers)],
            [torch.zeros(rows, *inputs, dtype=dtype, device=device) for _ in range(shape.layers)],
        )


@dataclass(frozen=True, slots=True)
class ChunkGroup:
    """Chunks that are computed together. A chunk is filled up with tokens that change nothing."""

    runs: Sequence[tuple[int, int]]  # the chunks of neighbouring sequences: the first of these, and their number
    token_indices: Tensor  # [chunks * chunk size]; padding repeats a token
    output_indices: Tensor  # [chunks * chunk size] as `token_indices`, but padding is the row after all tokens
    is_padding: Tensor  # [chunks, 1, chunk size]


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """Sequences of several tokens. Indices are into their tokens, end to end.

    Those with the most chunks are first, and the n-th chunks of all sequences follow each other, because they can be
    computed together. The kernels of fla-core take the sequences in their order.
    """

    read_rows: Tensor  # [sequences]
    write_rows: Tensor  # [sequences]
    groups: Sequence[ChunkGroup]  # none for the kernels
    window_indices: Tensor  # of a convolution's inputs: into the kept ones of all sequences, then the tokens
    convolved_indices: Tensor  # [tokens] where each token lies in the convolution's outputs
    kept_indices: Tensor  # [sequences * convolution inputs] what is kept for the next step, as `window_indices`
    # for the kernels:
    sequence_offsets: Tensor | None = None  # [sequences + 1] where the tokens of each start, and the last ones end
    chunk_numbers: Tensor | None = None  # [chunks, 2] of each chunk of 64 its sequence, and its number there


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The sequences of one token, which come first, and those of several."""

    single_read_rows: Tensor  # [sequences]
    single_write_rows: Tensor  # [sequences]
    chunks: ChunkLayout | None = None


def build_state_layout(
    query_lengths: Sequence[int], state_rows: Sequence[tuple[int, int]], shape: StateShape, device: torch.device
) -> StateLayout:
    single = sum(1 for _ in takewhile(lambda length: length == 1, query_lengths))
    rows = np.asarray(state_rows, np.int64)
    lengths = np.asarray(query_lengths[single:], np.int64)
    chunks = None
    if len(lengths):
        groups: Sequence[ChunkGroup] = ()
        if shape.has_kernels:
            order = np.arange(len(lengths))
            arrays = number_chunks(lengths)
        else:
            order, arrays = np.argsort(-lengths, kind="stable"), {}
            chunk_size = min(MAX_CHUNK_SIZE, 1 << int(lengths.max() - 1).bit_length())
            groups = build_chunk_groups(lengths, order, chunk_size, device)
        arrays |= index_convolution(lengths, order, shape.convolution_inputs)
        arrays |= {"read_rows": rows[single:, 0][order], "write_rows": rows[single:, 1][order]}
        tensors = {name: copy_to_device(array, device) for name, array in arrays.items()}
        chunks = ChunkLayout(groups=groups, **tensors)
    return StateLayout(copy_to_device(rows[:single, 0], device), copy_to_device(rows[:single, 1], device), chunks)


def build_chunk_groups(
    lengths: NDArray[np.int64], order: NDArray[np.int64], chunk_size: int, device: torch.device
) -> list[ChunkGroup]:
    active_counts, tokens, is_padding = index_chunks(lengths, order, chunk_size)
    outputs = np.where(is_padding, lengths.sum(), tokens)
    arrays = tokens.ravel(), outputs.ravel(), is_padding[:, None]
    token_indices, output_indices, padding = (copy_to_device(array, device) for array in arrays)
    groups, first = [], 0
    for runs in divide_chunks(active_counts, MAX_GROUP_CHUNKS):
        end = first + sum(count for _, count in runs)
        part = slice(first * chunk_size, end * chunk_size)
        groups.append(ChunkGroup(runs, token_indices[part], output_indices[part], padding[first:end]))
        first = end
    return groups


def index_chunks(
    lengths: NDArray[np.int64], order: NDArray[np.int64], chunk_size: int
) -> tuple[list[int], NDArray[np.int64], NDArray[np.bool_]]:
    """How many sequences have an n-th chunk; of each chunk the indices of its tokens, and which of them are padding.

    >>> counts, tokens, is_padding = index_chunks(np.array([3]), np.array([0]), 2)
    >>> counts, tokens.tolist(), is_padding.tolist()
    ([1, 1], [[0, 1], [2, 2]], [[False, False], [False, True]])
    """
    starts, lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
    active_counts = [int((lengths > first).sum()) for first in range(0, lengths[0], chunk_size)]
    firsts = np.concatenate([starts[:count] + at * chunk_size for at, count in enumerate(active_counts)])
    tokens_left = np.concatenate([lengths[:count] - at * chunk_size for at, count in enumerate(active_counts)])
    is_padding = np.arange(chunk_size) >= tokens_left[:, None]
    return active_counts, np.where(is_padding, firsts[:, None], firsts[:, None] + np.arange(chunk_size)), is_padding


def number_chunks(lengths: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """
    >>> fields = number_chunks(np.array([2, 65]))
    >>> fields["sequence_offsets"].tolist(), fields["chunk_numbers"].tolist()
    ([0, 2, 67], [[0, 0], [1, 0], [1, 1]])
    """
    counts = -(-lengths // MAX_CHUNK_SIZE)
    sequences = np.repeat(np.arange(len(lengths)), counts)
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return {
        "sequence_offsets": np.cumsum([0, *lengths]),
        "chunk_numbers": np.stack([sequences, numbers], 1),
    }


def divide_chunks(active_counts: Sequence[int], group_chunks: int) -> list[list[tuple[int, int]]]:
    """The runs of each group: its chunks that are of neighbouring sequences, as the first of these and their number.

    >>> divide_chunks([3, 1], 2)
    [[(0, 2)], [(2, 1), (0, 1)]]
    """
    groups: list[list[tuple[int, int]]] = []
    room = 0
    for active in active_counts:
        sequence = 0
        while sequence < active:
            if not room:
                groups.append([])
                room = group_chunks
            count = min(room, active - sequence)
            groups[-1].append((sequence, count))
            sequence, room = sequence + count, room - count
    return groups


def index_convolution(lengths: NDArray[np.int64], order: NDArray[np.int64], kept: int) -> dict[str, NDArray[Any]]:
    """The arrays of a ChunkLayout for a convolution over each sequence's kept inputs and its tokens.

    >>> fields = index_convolution(np.array([2]), np.array([0]), 3)
    >>> [fields[name].tolist() for name in ("window_indices", "convolved_indices", "kept_indices")]
    [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4]]
    """
    starts = np.cumsum(lengths) - lengths + kept * len(lengths)
    windows = [
        np.concatenate([np.arange(kept) + kept * place, np.arange(lengths[index]) + starts[index]])
        for place, index in enumerate(order)
    ]
    window_starts = np.cumsum([0, *(len(window) for window in windows)])
    convolved_indices = np.concatenate(
        [window_starts[place] + np.arange(lengths[index]) for index, place in enumerate(np.argsort(order))]
    )
    return {
        "window_indices": np.concatenate(windows),
        "convolved_indices": convolved_indices,
        "kept_indices": np.concatenate([window[len(window) - kept :] for window in windows]),
    }
