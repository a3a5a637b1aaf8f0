"""Rows with tokens to compute -> a step -> logits after the last of them, in one pass of the language model.

Rows that read and rows that decode go through together: their tokens are laid end to end, and only
attention knows where one row ends. On CUDA a pass in which every row decodes is replayed as a graph. A
step says everything in arrays, so that every rank can run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.attention import Cache, Packed, Runs
from pipeline.model.engines.torch.cuda_graphs import Graphs, Pass
from pipeline.model.engines.torch.loaded_model import Loaded
from pipeline.model.engines.torch.sequence import Row
from pipeline.model.engines.torch.vision import Gallery

Work = Sequence[tuple[Row, int]]  # rows, and how many of their tokens are computed
Feed = tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]  # tokens on the device, which of them, and where they go


def read(loaded: Loaded, embeddings: Tensor, positions: Tensor, packed: Packed, **shown: Any) -> Tensor:
    """Hidden states [tokens, hidden] of packed tokens."""
    out = loaded.language(
        inputs_embeds=embeddings[None], position_ids=positions[:, None], use_cache=False, packed=packed, **shown
    )
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def decode(loaded: Loaded) -> Pass:
    """Ids to logits, of rows that decode: what a graph holds."""

    def run(ids: Tensor, positions: Tensor, packed: Packed) -> Tensor:
        return loaded.head(read(loaded, loaded.language.embed_tokens(ids), positions, packed))  # type: ignore[no-any-return]

    return run


@dataclass(frozen=True, slots=True)
class Step:
    """One pass, for whoever runs it."""

    ids: NDArray[np.int64]  # [tokens]
    positions: NDArray[np.int64]  # [3, tokens]
    lengths: list[int]  # [rows] tokens of each row in this step
    starts: list[int]  # [rows] of their runs of the cache
    used: list[int]  # [rows] tokens in the run after this step
    ends: NDArray[np.int64]  # tokens whose logits are wanted
    decodes: bool  # one token of every row, all of them said by the model
    pads: NDArray[np.int64]  # tokens in whose place is put what was seen
    seen: list[tuple[tuple[str, ...], int, int]]  # of which clips, from where to where in what they became


def describe(work: Work) -> Step:
    spans = [(row, row.done, row.done + count) for row, count in work]
    lengths = [count for _, count in work]
    offsets = np.cumsum(lengths) - lengths
    pads, seen = [np.zeros(0, np.int64)], []
    for (row, first, end), offset in zip(spans, offsets, strict=True):
        if first < row.prompt and len(row.vision_at):
            low, high = np.searchsorted(row.vision_at, [first, end])
            pads.append(row.vision_at[low:high] - first + offset)
            seen.append((row.clips, int(low), int(high)))
    return Step(
        ids=np.concatenate([row.ids[first:end] for row, first, end in spans]),
        positions=np.concatenate([row.positions[:, first:end] for row, first, end in spans], 1),
        lengths=lengths,
        starts=[row.start for row, _, _ in spans],
        used=[end for _, _, end in spans],
        ends=np.asarray(
            [at + end - first - 1 for (row, first, end), at in zip(spans, offsets, strict=True) if end >= row.known],
            np.int64,
        ),
        decodes=all(count == 1 and row.done >= row.prompt for row, count in work),
        pads=np.concatenate(pads),
        seen=seen,
    )


class Forward:
    def __init__(self, loaded: Loaded, cache: Cache, gallery: Gallery, graphs: Graphs | None = None, *, flash: bool):
        self.loaded = loaded
        self.cache = cache
        self.gallery = gallery
        self.graphs = graphs
        self.flash = flash

    def __call__(self, work: Work, fed: Mapping[Row, int] | None = None, tokens: Tensor | None = None) -> Tensor:
        """Logits [rows, vocabulary] of those rows whose last known token is computed by this, in order.

        A row in `fed` computes a token that only the device knows: that one of `tokens`.
        """
        step, feed = describe(work), None
        if fed and tokens is not None:
            ends = np.cumsum(step.lengths) - 1
            lines = [(fed[row], end) for (row, _), end in zip(work, ends, strict=True) if row in fed]
            feed = tokens, *np.asarray(lines, np.int64).T
        with self.gallery.ranks.together("read", (step,)):
            return self.run(step, feed)

    @torch.inference_mode()
    def run(self, step: Step, feed: Feed | None = None) -> Tensor:
        lengths, starts, used = step.lengths, step.starts, step.used
        ids = self.send(step.ids)
        if feed:
            tokens, lines, at = feed
            ids[self.send(at)] = tokens[self.send(lines)]
        if self.graphs and step.decodes:
            return self.graphs(ids, step.positions, starts, used)
        last = np.asarray(starts) + used
        index = np.concatenate([np.arange(end - count, end) for end, count in zip(last, lengths, strict=True)])
        packed = Packed(self.cache, self.send(index), lengths, starts, used)
        if self.flash:
            packed.runs = Runs.of(lengths, starts, used, self.loaded.device)
        embeddings = self.loaded.language.embed_tokens(ids)
        hidden = read(self.loaded, embeddings, self.send(step.positions), packed, **self.show(embeddings, step))
        logits: Tensor = self.loaded.head(hidden[self.send(step.ends)])
        return logits

    def show(self, embeddings: Tensor, step: Step) -> dict[str, Any]:
        """Put what was seen in the place of pad tokens; return what goes into later layers."""
        if not step.seen:
            return {}
        at = self.send(step.pads)
        seen = torch.cat([self.gallery.features(clips)[:, low:high] for clips, low, high in step.seen], 1)
        embeddings.index_copy_(0, at, seen[0].to(embeddings.dtype))
        if len(seen) == 1:
            return {}
        mask = torch.zeros(1, len(embeddings), dtype=torch.bool, device=embeddings.device)
        mask[0, at] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(seen[1:])}

    def send(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.loaded.device, non_blocking=True)
