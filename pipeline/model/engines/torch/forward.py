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

from pipeline.model.engines.torch.attention import FlashLayout, KVCache, PackedBatch
from pipeline.model.engines.torch.cuda_graphs import DecodeFunction, DecodeGraphs
from pipeline.model.engines.torch.loaded_model import LoadedModel
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.vision import VisionCache

ScheduledBatch = Sequence[tuple[SequenceState, int]]  # rows, and how many of their tokens are computed
DeviceTokens = tuple[
    Tensor, NDArray[np.int64], NDArray[np.int64]
]  # tokens on the device, which of them, and where they go


def run_language_model(
    loaded: LoadedModel, embeddings: Tensor, positions: Tensor, packed_batch: PackedBatch, **deepstack_arguments: Any
) -> Tensor:
    """Hidden states [tokens, hidden] of packed tokens."""
    out = loaded.language_model(
        inputs_embeds=embeddings[None],
        position_ids=positions[:, None],
        use_cache=False,
        packed=packed_batch,
        **deepstack_arguments,
    )
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def build_decode_function(loaded: LoadedModel) -> DecodeFunction:
    """Ids to logits, of rows that decode: what a graph holds."""

    def run(ids: Tensor, positions: Tensor, packed: PackedBatch) -> Tensor:
        return loaded.lm_head(run_language_model(loaded, loaded.language_model.embed_tokens(ids), positions, packed))  # type: ignore[no-any-return]

    return run


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One pass, for whoever runs it."""

    token_ids: NDArray[np.int64]  # [tokens]
    positions: NDArray[np.int64]  # [3, tokens]
    query_lengths: list[int]  # [rows] tokens of each row in this step
    run_starts: list[int]  # [rows] of their runs of the cache
    run_lengths: list[int]  # [rows] tokens in the run after this step
    logit_indices: NDArray[np.int64]  # tokens whose logits are wanted
    is_decode: bool  # one token of every row, all of them said by the model
    pad_indices: NDArray[np.int64]  # tokens in whose place is put what was seen
    vision_spans: list[tuple[tuple[str, ...], int, int]]  # of which clips, from where to where in what they became


def build_step_inputs(batch: ScheduledBatch) -> StepInputs:
    spans = [(row, row.computed_tokens, row.computed_tokens + count) for row, count in batch]
    lengths = [count for _, count in batch]
    offsets = np.cumsum(lengths) - lengths
    pads, seen = [np.zeros(0, np.int64)], []
    for (row, first, end), offset in zip(spans, offsets, strict=True):
        if first < row.prompt_tokens and len(row.vision_indices):
            low, high = np.searchsorted(row.vision_indices, [first, end])
            pads.append(row.vision_indices[low:high] - first + offset)
            seen.append((row.clip_keys, int(low), int(high)))
    return StepInputs(
        token_ids=np.concatenate([row.token_ids[first:end] for row, first, end in spans]),
        positions=np.concatenate([row.positions[:, first:end] for row, first, end in spans], 1),
        query_lengths=lengths,
        run_starts=[row.run_start for row, _, _ in spans],
        run_lengths=[end for _, _, end in spans],
        logit_indices=np.asarray(
            [
                at + end - first - 1
                for (row, first, end), at in zip(spans, offsets, strict=True)
                if end >= row.known_tokens
            ],
            np.int64,
        ),
        is_decode=all(count == 1 and row.computed_tokens >= row.prompt_tokens for row, count in batch),
        pad_indices=np.concatenate(pads),
        vision_spans=seen,
    )


class StepRunner:
    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        vision_cache: VisionCache,
        graphs: DecodeGraphs | None = None,
        *,
        has_flash: bool,
    ):
        self.loaded = loaded
        self.cache = cache
        self.vision_cache = vision_cache
        self.graphs = graphs
        self.has_flash = has_flash

    def __call__(
        self,
        batch: ScheduledBatch,
        device_token_rows: Mapping[SequenceState, int] | None = None,
        device_tokens: Tensor | None = None,
    ) -> Tensor:
        """Logits [rows, vocabulary] of those rows whose last known token is computed by this, in order.

        A row in `fed` computes a token that only the device knows: that one of `tokens`.
        """
        step, feed = build_step_inputs(batch), None
        if device_token_rows and device_tokens is not None:
            ends = np.cumsum(step.query_lengths) - 1
            lines = [
                (device_token_rows[row], end)
                for (row, _), end in zip(batch, ends, strict=True)
                if row in device_token_rows
            ]
            feed = device_tokens, *np.asarray(lines, np.int64).T
        with self.vision_cache.collectives.run_on_all_ranks("read", (step,)):
            return self.run_step(step, feed)

    @torch.inference_mode()
    def run_step(self, step: StepInputs, device_tokens: DeviceTokens | None = None) -> Tensor:
        lengths, starts, used = step.query_lengths, step.run_starts, step.run_lengths
        ids = self.to_device(step.token_ids)
        if device_tokens:
            tokens, lines, at = device_tokens
            ids[self.to_device(at)] = tokens[self.to_device(lines)]
        if self.graphs and step.is_decode:
            return self.graphs(ids, step.positions, starts, used)
        last = np.asarray(starts) + used
        index = np.concatenate([np.arange(end - count, end) for end, count in zip(last, lengths, strict=True)])
        packed = PackedBatch(self.cache, self.to_device(index), lengths, starts, used)
        if self.has_flash:
            packed.flash_layout = FlashLayout.from_lengths(lengths, starts, used, self.loaded.device)
        embeddings = self.loaded.language_model.embed_tokens(ids)
        hidden = run_language_model(
            self.loaded,
            embeddings,
            self.to_device(step.positions),
            packed,
            **self.insert_vision_features(embeddings, step),
        )
        logits: Tensor = self.loaded.lm_head(hidden[self.to_device(step.logit_indices)])
        return logits

    def insert_vision_features(self, embeddings: Tensor, step: StepInputs) -> dict[str, Any]:
        """Put what was seen in the place of pad tokens; return what goes into later layers."""
        if not step.vision_spans:
            return {}
        at = self.to_device(step.pad_indices)
        seen = torch.cat(
            [self.vision_cache.join_features(clips)[:, low:high] for clips, low, high in step.vision_spans], 1
        )
        embeddings.index_copy_(0, at, seen[0].to(embeddings.dtype))
        if len(seen) == 1:
            return {}
        mask = torch.zeros(1, len(embeddings), dtype=torch.bool, device=embeddings.device)
        mask[0, at] = True
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(seen[1:])}

    def to_device(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.loaded.device, non_blocking=True)
