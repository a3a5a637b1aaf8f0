"""A pass in which every row decodes -> the same pass replayed as a CUDA graph.

Launching a pass from Python costs more than a card needs to decode a token. A graph has a fixed
number of rows, so there is one for each of a few sizes, made when first needed; the rows left over
read and write the cache's last token, which is nobody's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.attention import FlashLayout, KVCache, PackedBatch

DecodeFunction = Callable[
    [Tensor, Tensor, PackedBatch], Tensor
]  # ids, positions, where they go -> logits of each token
CaptureFunction = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def capture_cuda_graph(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """How to do it again, and where the result will be."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries set themselves up outside the graph
        compute()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread asks how it goes
        made = compute()
    return graph.replay, made


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """Buffers that are written before a replay, and the logits that it leaves."""

    token_ids: Tensor
    positions: Tensor
    packed_batch: PackedBatch
    replay: Callable[[], object]
    logits: Tensor


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
        """Logits [rows, vocabulary], overwritten by the next call."""
        rows = len(token_ids)
        size = self.batch_sizes[bisect_left(self.batch_sizes, rows)]
        if size not in self.captured_graphs:
            self.captured_graphs[size] = self.capture_batch_size(size)
        graph, spare = self.captured_graphs[size], size - rows
        runs = graph.packed_batch.flash_layout
        assert runs is not None
        last = np.asarray(run_starts) + np.asarray(run_lengths) - 1
        graph.token_ids[:rows].copy_(token_ids)
        copy_to_buffer(graph.positions, np.pad(positions, ((0, 0), (0, spare))))
        copy_to_buffer(graph.packed_batch.cache_indices, np.pad(last, (0, spare), constant_values=self.padding_index))
        copy_to_buffer(runs.run_starts, np.pad(run_starts, (0, spare + 1), constant_values=self.padding_index))
        copy_to_buffer(runs.run_lengths, np.pad(run_lengths, (0, spare), constant_values=1))
        graph.replay()
        return graph.logits[:rows]

    def capture_batch_size(self, batch_size: int) -> CapturedGraph:
        device = self.cache.keys.device
        ids = torch.zeros(batch_size, dtype=torch.long, device=device)
        positions = torch.zeros(3, batch_size, dtype=torch.long, device=device)
        nobody = torch.full((batch_size + 1,), self.padding_index, dtype=torch.int32, device=device)
        ends = torch.arange(batch_size + 1, dtype=torch.int32, device=device)
        runs = FlashLayout(
            ends, nobody, torch.ones(batch_size, dtype=torch.int32, device=device), (1, self.max_run_length)
        )
        packed = PackedBatch(self.cache, nobody[:batch_size].long(), flash_layout=runs)
        replay, logits = self.capture(lambda: self.decode(ids, positions, packed))
        return CapturedGraph(ids, positions, packed, replay, logits)


def copy_to_buffer(buffer: Tensor, values: NDArray[np.int64]) -> None:
    buffer.copy_(torch.from_numpy(values), non_blocking=True)
