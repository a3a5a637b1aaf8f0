"""Rows with tokens to compute -> logits after the last of them, in one pass of the language model.

Rows that read and rows that decode go through together: their tokens are laid end to end, and only
attention knows where one row ends. On CUDA a pass in which every row decodes is replayed as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.model.engines.torch.attention import Cache, Packed, Runs
from pipeline.model.engines.torch.graphs import Graphs, Pass
from pipeline.model.engines.torch.load import Loaded
from pipeline.model.engines.torch.rows import Row
from pipeline.model.engines.torch.vision import Gallery

Work = Sequence[tuple[Row, int]]  # rows, and how many of their tokens are computed


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


class Forward:
    def __init__(self, loaded: Loaded, cache: Cache, gallery: Gallery, graphs: Graphs | None = None, *, flash: bool):
        self.loaded = loaded
        self.cache = cache
        self.gallery = gallery
        self.graphs = graphs
        self.flash = flash

    @torch.inference_mode()
    def __call__(self, work: Work) -> Tensor:
        """Logits [rows, vocabulary] of those rows whose last known token is computed by this, in order."""
        spans = [(row, row.done, row.done + count) for row, count in work]
        ids = np.concatenate([row.ids[first:end] for row, first, end in spans])
        positions = np.concatenate([row.positions[:, first:end] for row, first, end in spans], 1)
        starts, used = [row.start for row, _, _ in spans], [end for _, _, end in spans]
        if self.graphs and all(count == 1 and row.done >= row.prompt for row, count in work):
            return self.graphs(ids, positions, starts, used)
        lengths = [count for _, count in work]
        index = np.concatenate([np.arange(row.start + first, row.start + end) for row, first, end in spans])
        packed = Packed(self.cache, self.send(index), lengths, starts, used)
        if self.flash:
            packed.runs = Runs.of(lengths, starts, used, self.loaded.device)
        embeddings = self.loaded.language.embed_tokens(self.send(ids))
        hidden = read(self.loaded, embeddings, self.send(positions), packed, **self.show(embeddings, spans))
        ends = np.cumsum(lengths) - 1
        complete = [end for end, (row, _, last) in zip(ends, spans, strict=True) if last == row.known]
        logits: Tensor = self.loaded.head(hidden[self.send(np.asarray(complete, np.int64))])
        return logits

    def show(self, embeddings: Tensor, spans: Sequence[tuple[Row, int, int]]) -> dict[str, Any]:
        """Put what was seen in the place of pad tokens; return what goes into later layers."""
        places, features, offset = [], [], 0
        for row, first, end in spans:
            if first < row.prompt and len(row.vision_at):
                low, high = np.searchsorted(row.vision_at, [first, end])
                places.append(row.vision_at[low:high] - first + offset)
                features.append(self.gallery.features(row.clips)[:, low:high])
            offset += end - first
        if not places:
            return {}
        at, seen = self.send(np.concatenate(places)), torch.cat(features, 1)
        embeddings.index_copy_(0, at, seen[0].to(embeddings.dtype))
        if len(seen) == 1:
            return {}
        mask = torch.zeros(1, len(embeddings), dtype=torch.bool, device=embeddings.device)
        mask[0, at] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(seen[1:])}

    def send(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.loaded.device, non_blocking=True)
