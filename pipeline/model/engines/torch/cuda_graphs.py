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

from pipeline.model.engines.torch.attention import Cache, Packed, Runs

Pass = Callable[[Tensor, Tensor, Packed], Tensor]  # ids, positions, where they go -> logits of each token
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """How to do it again, and where the result will be."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries set themselves up outside the graph
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread asks how it goes
        made = work()
    return graph.replay, made


@dataclass(frozen=True, slots=True)
class Graph:
    """Buffers that are written before a replay, and the logits that it leaves."""

    ids: Tensor
    positions: Tensor
    packed: Packed
    replay: Callable[[], object]
    logits: Tensor


class Graphs:
    def __init__(self, run: Pass, cache: Cache, *, slots: int, context: int, capture: Capture = capture):
        self.run = run
        self.cache = cache
        self.nobody = cache.keys.shape[1] - 1
        self.most = min(context, self.nobody)
        self.sizes = [*(size for size in (1, 2, 4, 8, *range(16, slots, 16)) if size < slots), slots]
        self.capture = capture
        self.made: dict[int, Graph] = {}

    def __call__(self, ids: Tensor, positions: NDArray[np.int64], starts: list[int], used: list[int]) -> Tensor:
        """Logits [rows, vocabulary], overwritten by the next call."""
        rows = len(ids)
        size = self.sizes[bisect_left(self.sizes, rows)]
        if size not in self.made:
            self.made[size] = self.make(size)
        graph, spare = self.made[size], size - rows
        runs = graph.packed.runs
        assert runs is not None
        last = np.asarray(starts) + np.asarray(used) - 1
        graph.ids[:rows].copy_(ids)
        write(graph.positions, np.pad(positions, ((0, 0), (0, spare))))
        write(graph.packed.index, np.pad(last, (0, spare), constant_values=self.nobody))
        write(runs.starts, np.pad(starts, (0, spare + 1), constant_values=self.nobody))
        write(runs.used, np.pad(used, (0, spare), constant_values=1))
        graph.replay()
        return graph.logits[:rows]

    def make(self, size: int) -> Graph:
        device = self.cache.keys.device
        ids = torch.zeros(size, dtype=torch.long, device=device)
        positions = torch.zeros(3, size, dtype=torch.long, device=device)
        nobody = torch.full((size + 1,), self.nobody, dtype=torch.int32, device=device)
        ends = torch.arange(size + 1, dtype=torch.int32, device=device)
        runs = Runs(ends, nobody, torch.ones(size, dtype=torch.int32, device=device), (1, self.most))
        packed = Packed(self.cache, nobody[:size].long(), runs=runs)
        replay, logits = self.capture(lambda: self.run(ids, positions, packed))
        return Graph(ids, positions, packed, replay, logits)


def write(buffer: Tensor, values: NDArray[np.int64]) -> None:
    buffer.copy_(torch.from_numpy(values), non_blocking=True)
