"""Replays a step in which every sequence decodes as a CUDA graph.

Launching such a step from Python takes longer than a GPU needs to compute it. A graph has a fixed batch size and a
fixed limit for the length of a run, so there is one for each of a few sizes, captured when it is first needed. If a
capture fails, the engine goes on without graphs. Rows that a batch leaves over read and write the last token of the KV
cache, which no sequence uses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.host_memory import fill_from_host
from pipeline.model.engines.torch.kv_cache import FlashLayout, KVCache, PackedBatch
from pipeline.model.engines.torch.linear_state import SINK_ROW, ZERO_ROW, LinearStates, StateLayout

DecodeFunction = Callable[[Tensor, Tensor, PackedBatch], Tensor]  # token ids, positions -> logits of each token
CaptureFunction = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


class GraphCaptureError(Exception):
    """The decode function cannot be captured as a graph here."""


@lru_cache
def get_shared_pool() -> Any:
    """The memory of all graphs: they are replayed one after the other, and each overwrites what the last one left."""
    return torch.cuda.graph_pool_handle()


def capture_cuda_graph(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A function that replays the computation, and the tensor that each replay writes."""
    warmup_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warmup_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warmup_stream):  # libraries initialise themselves here, outside the graph
        compute()
    torch.cuda.current_stream().wait_stream(warmup_stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local, because NCCL's own thread makes calls meanwhile
    with torch.cuda.graph(graph, pool=get_shared_pool(), capture_error_mode="thread_local"):
        output = compute()
    return graph.replay, output


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """Buffers to fill before a replay, and the logits that it leaves."""

    token_ids: Tensor  # [batch size]
    positions: Tensor  # [axes, batch size]
    cache_indices: Tensor  # [batch size]
    layout: FlashLayout
    state_layout: StateLayout | None
    replay: Callable[[], object]
    logits: Tensor  # [batch size, vocabulary]


class DecodeGraphs:
    def __init__(
        self,
        decode: DecodeFunction,
        cache: KVCache,
        states: LinearStates | None = None,
        *,
        slots: int,
        context_length: int,
        capture: CaptureFunction = capture_cuda_graph,
    ):
        self.decode = decode
        self.cache = cache
        self.states = states
        self.padding_index = len(cache.keys[0]) - 1
        self.max_run_lengths = list_max_run_lengths(min(context_length, self.padding_index))
        self.batch_sizes = [*(size for size in (1, 2, 4, 8, *range(16, slots, 16)) if size < slots), slots]
        self.capture = capture
        self.is_usable = True  # until a capture fails
        self.replay_count = 0
        self.captured_graphs: dict[tuple[int, int], CapturedGraph] = {}  # by batch size and longest run

    def __call__(
        self,
        token_ids: Tensor,
        positions: NDArray[np.int64],
        run_starts: list[int],
        run_lengths: list[int],
        state_rows: list[tuple[int, int]],
    ) -> Tensor:
        """Logits [sequences, vocabulary]. The next call overwrites them."""
        sequences = len(token_ids)
        batch_size = self.batch_sizes[bisect_left(self.batch_sizes, sequences)]
        max_run_length = self.max_run_lengths[bisect_left(self.max_run_lengths, max(run_lengths))]
        key = batch_size, max_run_length
        if key not in self.captured_graphs:
            self.captured_graphs[key] = self.capture_size(batch_size, max_run_length, len(positions))
        graph, spare = self.captured_graphs[key], batch_size - sequences
        last_indices = np.asarray(run_starts) + np.asarray(run_lengths) - 1
        graph.token_ids[:sequences].copy_(token_ids)
        fill_from_host(graph.positions, np.pad(positions, ((0, 0), (0, spare))))
        fill_from_host(graph.cache_indices, np.pad(last_indices, (0, spare), constant_values=self.padding_index))
        fill_from_host(graph.layout.run_starts, np.pad(run_starts, (0, spare + 1), constant_values=self.padding_index))
        fill_from_host(graph.layout.run_lengths, np.pad(run_lengths, (0, spare), constant_values=1))
        if graph.state_layout is not None:
            padded_rows = np.asarray([*state_rows, *[(ZERO_ROW, SINK_ROW)] * spare])
            fill_from_host(graph.state_layout.single_read_rows, padded_rows[:, 0])
            fill_from_host(graph.state_layout.single_write_rows, padded_rows[:, 1])
        graph.replay()
        self.replay_count += 1
        return graph.logits[:sequences]

    def release(self) -> None:
        """Before ranks part: a graph holds the communicator that its collectives use."""
        self.captured_graphs.clear()

    def capture_size(self, batch_size: int, max_run_length: int, position_axes: int) -> CapturedGraph:
        device = self.cache.keys[0].device
        token_ids = torch.zeros(batch_size, dtype=torch.long, device=device)
        positions = torch.zeros(position_axes, batch_size, dtype=torch.long, device=device)
        cache_indices = torch.full((batch_size,), self.padding_index, dtype=torch.long, device=device)
        layout = FlashLayout(
            tokens=batch_size,
            query_offsets=torch.arange(batch_size + 1, dtype=torch.int32, device=device),
            run_starts=torch.full((batch_size + 1,), self.padding_index, dtype=torch.int32, device=device),
            run_lengths=torch.ones(batch_size, dtype=torch.int32, device=device),
            max_lengths=(1, max_run_length),
        )
        state_layout = None
        if self.states is not None:
            reads, writes = (torch.full((batch_size,), row, device=device) for row in (ZERO_ROW, SINK_ROW))
            state_layout = StateLayout(reads, writes)
        packed_batch = PackedBatch(
            self.cache, cache_indices, flash_layouts=[layout], states=self.states, state_layout=state_layout
        )
        try:
            replay, logits = self.capture(lambda: self.decode(token_ids, positions, packed_batch))
        except RuntimeError as error:  # all that torch raises, out of memory too
            self.is_usable = False
            raise GraphCaptureError(f"{type(error).__name__}: {error}") from error
        return CapturedGraph(token_ids, positions, cache_indices, layout, state_layout, replay, logits)


def list_max_run_lengths(longest: int) -> list[int]:
    """The lengths for which graphs are captured. The kernel shares the keys of a run among more processors by it.

    >>> list_max_run_lengths(20000)
    [1024, 4096, 16384, 20000]
    """
    return [*(length for length in (4**power for power in range(5, 12)) if length < longest), longest]
