"""Replays a step in which every sequence decodes as a CUDA graph.

Launching such a step from Python takes longer than a GPU needs to compute it. A graph has a fixed batch size, so there
is one for each of a few sizes, captured when it is first needed. Rows that a batch leaves over read and write the
last token of the KV cache, which no sequence uses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.host_memory import fill_from_host
from pipeline.model.engines.torch.kv_cache import FlashLayout, KVCache, PackedBatch

DecodeFunction = Callable[[Tensor, Tensor, PackedBatch], Tensor]  # token ids, positions -> logits of each token
CaptureFunction = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def capture_cuda_graph(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A function that replays the computation, and the tensor that each replay writes."""
    warmup_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warmup_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warmup_stream):  # libraries initialise themselves here, outside the graph
        compute()
    torch.cuda.current_stream().wait_stream(warmup_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread makes calls meanwhile
        output = compute()
    return graph.replay, output


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """Buffers to fill before a replay, and the logits that it leaves."""

    token_ids: Tensor  # [batch size]
    positions: Tensor  # [axes, batch size]
    cache_indices: Tensor  # [batch size]
    layout: FlashLayout
    replay: Callable[[], object]
    logits: Tensor  # [batch size, vocabulary]


class DecodeGraphs:
    def __init__(
        self,
        decode: DecodeFunction,
        cache: KVCache,
        *,
        slots: int,
        context_length: int,
        capture: CaptureFunction = capture_cuda_graph,
    ):
        self.decode = decode
        self.cache = cache
        self.padding_index = cache.keys.shape[1] - 1
        self.max_run_length = min(context_length, self.padding_index)
        self.batch_sizes = [*(size for size in (1, 2, 4, 8, *range(16, slots, 16)) if size < slots), slots]
        self.capture = capture
        self.captured_graphs: dict[int, CapturedGraph] = {}

    def __call__(
        self, token_ids: Tensor, positions: NDArray[np.int64], run_starts: list[int], run_lengths: list[int]
    ) -> Tensor:
        """Logits [sequences, vocabulary]. The next call overwrites them."""
        sequences = len(token_ids)
        batch_size = self.batch_sizes[bisect_left(self.batch_sizes, sequences)]
        if batch_size not in self.captured_graphs:
            self.captured_graphs[batch_size] = self.capture_batch_size(batch_size, len(positions))
        graph, spare = self.captured_graphs[batch_size], batch_size - sequences
        last_indices = np.asarray(run_starts) + np.asarray(run_lengths) - 1
        graph.token_ids[:sequences].copy_(token_ids)
        fill_from_host(graph.positions, np.pad(positions, ((0, 0), (0, spare))))
        fill_from_host(graph.cache_indices, np.pad(last_indices, (0, spare), constant_values=self.padding_index))
        fill_from_host(graph.layout.run_starts, np.pad(run_starts, (0, spare + 1), constant_values=self.padding_index))
        fill_from_host(graph.layout.run_lengths, np.pad(run_lengths, (0, spare), constant_values=1))
        graph.replay()
        return graph.logits[:sequences]

    def capture_batch_size(self, batch_size: int, position_axes: int) -> CapturedGraph:
        device = self.cache.keys.device
        token_ids = torch.zeros(batch_size, dtype=torch.long, device=device)
        positions = torch.zeros(position_axes, batch_size, dtype=torch.long, device=device)
        cache_indices = torch.full((batch_size,), self.padding_index, dtype=torch.long, device=device)
        layout = FlashLayout(
            query_offsets=torch.arange(batch_size + 1, dtype=torch.int32, device=device),
            run_starts=torch.full((batch_size + 1,), self.padding_index, dtype=torch.int32, device=device),
            run_lengths=torch.ones(batch_size, dtype=torch.int32, device=device),
            max_lengths=(1, self.max_run_length),
        )
        packed_batch = PackedBatch(self.cache, cache_indices, flash_layout=layout)
        replay, logits = self.capture(lambda: self.decode(token_ids, positions, packed_batch))
        return CapturedGraph(token_ids, positions, cache_indices, layout, replay, logits)
