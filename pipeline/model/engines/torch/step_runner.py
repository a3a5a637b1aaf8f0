"""Runs one step: one pass of the language model over the scheduled tokens of all sequences.

Sequences in prefill and in decode share the pass. Their tokens are laid end to end, and only attention knows where a
sequence ends. On CUDA a step in which every sequence decodes is replayed as a graph. StepInputs holds only arrays and
numbers, so that it can be sent to every rank.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.engines.torch.continuation_scorer import NO_TARGETS
from pipeline.model.engines.torch.cuda_graphs import DecodeFunction, DecodeGraphs, GraphCaptureError
from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.engines.torch.kv_cache import KVCache, PackedBatch, RunCopy, build_branch_masks, build_flash_layouts
from pipeline.model.engines.torch.linear_state import LinearStates, build_state_layout, find_state_rows
from pipeline.model.engines.torch.model_loader import LoadedModel
from pipeline.model.engines.torch.pending_step import UnreadTokens
from pipeline.model.engines.torch.scheduler import ScheduledBatch
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.engines.torch.vision_cache import VisionCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepInputs:
    token_ids: NDArray[np.int64]  # [tokens]
    positions: NDArray[np.int64]  # [axes, tokens]
    query_lengths: list[int]  # [sequences] tokens of each in this step
    run_starts: list[int]  # [sequences] where its run of the KV cache starts
    run_lengths: list[int]  # [sequences] tokens in the run after this step
    logit_indices: NDArray[np.int64]  # the tokens whose logits are wanted
    is_decode: bool  # one token of each sequence, all of them after the prompt
    pad_indices: NDArray[np.int64]  # the tokens that vision features replace
    vision_spans: list[tuple[list[str], int, int]]  # those features: clip keys, first and end among their tokens
    state_rows: list[tuple[int, int]]  # [sequences] of linear attention: what the step reads and what it writes
    copies: list[RunCopy]  # of shared prefixes and of runs that move, before anything is computed
    branch_lengths: list[tuple[int, ...]]  # [sequences] of branches that are computed together
    target_indices: NDArray[np.int64]  # [targets] tokens of the step, and for each a token that may follow it,
    target_tokens: NDArray[np.int64]  # [targets] whose probability is wanted
    pooled_spans: list[tuple[int, int]]  # tokens of the step whose states are summed


class StepOutputs(NamedTuple):
    logits: Tensor  # [sequences, vocabulary] of those that reach their last token
    scores: Tensor  # [targets] log-probabilities, in float32
    sums: Tensor  # [pooled spans, width] of states, in float32


def build_step_inputs(batch: ScheduledBatch) -> StepInputs:
    spans = [(sequence, sequence.computed_tokens, sequence.computed_tokens + count) for sequence, count in batch]
    query_lengths = [count for _, count in batch]
    ends = np.cumsum(query_lengths)
    offsets = ends - query_lengths
    pad_indices, vision_spans = [np.zeros(0, np.int64)], []
    for (sequence, first, end), offset in zip(spans, offsets, strict=True):
        if first < sequence.prompt_tokens and len(sequence.vision_indices):
            low, high = np.searchsorted(sequence.vision_indices, [first, end])
            if low == high:
                continue
            pad_indices.append(sequence.vision_indices[low:high] - first + offset)
            vision_spans.append(sequence.select_clips(int(low), int(high)))
    targets = [
        (columns.offsets + offset, columns.tokens)
        for (sequence, count), offset in zip(batch, offsets.tolist(), strict=True)
        if sequence.scorer and (columns := sequence.list_targets(count))
    ]
    target_indices, target_tokens = zip((NO_TARGETS.offsets, NO_TARGETS.tokens), *targets, strict=True)
    pooled_spans = [
        (span[0] + offset, span[1] + offset)
        for (sequence, count), offset in zip(batch, offsets.tolist(), strict=True)
        if (span := sequence.find_pooled_span(count))
    ]
    return StepInputs(
        token_ids=np.concatenate([sequence.token_ids[first:end] for sequence, first, end in spans]),
        positions=np.concatenate([sequence.positions[:, first:end] for sequence, first, end in spans], axis=1),
        query_lengths=query_lengths,
        run_starts=[sequence.run_of_next_step[0] for sequence, _ in batch],
        run_lengths=[end for _, _, end in spans],
        logit_indices=ends[[sequence.reaches_last_token(count) for sequence, count in batch]] - 1,
        is_decode=all(count == 1 and item.is_prefilled and not item.only_prefills for item, count in batch),
        pad_indices=np.concatenate(pad_indices),
        vision_spans=vision_spans,
        state_rows=[choose_state_rows(*span) for span in spans],
        copies=[copy for sequence, _ in batch if (copy := choose_copy(sequence))],
        branch_lengths=[sequence.branch_lengths for sequence, _ in batch],
        target_indices=np.concatenate(target_indices),
        target_tokens=np.concatenate(target_tokens),
        pooled_spans=pooled_spans,
    )


def choose_copy(sequence: SequenceState) -> RunCopy | None:
    """What the sequence's next step copies to its run, if anything."""
    if sequence.is_new and sequence.prefix_source:
        return RunCopy(sequence.prefix_source.start, sequence.run_start, sequence.prefix_tokens)
    return sequence.next_run and RunCopy(sequence.run_start, sequence.next_run[0], sequence.computed_tokens)


def choose_state_rows(sequence: SequenceState, first: int, end: int) -> tuple[int, int]:
    """The rows of linear attention that a step over these tokens reads and writes."""
    read, write = find_state_rows(sequence.slot, sequence.state_side, is_new=first == 0)
    kept_row = sequence.choose_kept_row(end - first)
    return read if sequence.kept_state_row is None else sequence.kept_state_row, write if kept_row is None else kept_row


def locate_unread_tokens(batch: ScheduledBatch, unread: UnreadTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices into the sampled tokens, and for each where it goes among the tokens of the step."""
    ends = np.cumsum([count for _, count in batch])
    pairs = [
        (unread.index_by_sequence[sequence], end - 1)
        for (sequence, _), end in zip(batch, ends, strict=True)
        if sequence in unread.index_by_sequence
    ]
    sources, targets = np.asarray(pairs, np.int64).T
    return sources, targets


@dataclass(eq=False)
class StepRunner:
    loaded: LoadedModel
    cache: KVCache
    vision_cache: VisionCache
    graphs: DecodeGraphs | None
    has_flash: bool
    states: LinearStates | None = None
    max_logit_rows: int = 64  # of targets, at a time: as many as the plan of the memory counts

    def __call__(self, batch: ScheduledBatch, unread: UnreadTokens | None = None) -> StepOutputs:
        """Run the batch on every rank."""
        inputs = build_step_inputs(batch)
        targets = unread_tokens = None
        if unread and unread.index_by_sequence:
            sources, targets = locate_unread_tokens(batch, unread)
            unread_tokens = unread.tokens.index_select(0, self.to_device(sources))
        with self.vision_cache.collectives.run_on_all_ranks("run_step", (inputs, targets)):
            return self.run_step(inputs, targets, unread_tokens)

    @torch.inference_mode()
    def run_step(
        self, inputs: StepInputs, targets: NDArray[np.int64] | None = None, unread_tokens: Tensor | None = None
    ) -> StepOutputs:
        """Unread tokens take the places `targets`; rank 0 sends them to the other ranks, from device to device."""
        if inputs.copies:
            self.cache.copy_tokens(inputs.copies)
        token_ids = self.to_device(inputs.token_ids)
        if targets is not None:
            tokens = token_ids.new_empty(len(targets)) if unread_tokens is None else unread_tokens
            self.vision_cache.collectives.broadcast(tokens, 0)
            token_ids.index_copy_(0, self.to_device(targets), tokens)
        if self.graphs and self.graphs.is_usable and inputs.is_decode:
            try:
                logits = self.graphs(
                    token_ids, inputs.positions, inputs.run_starts, inputs.run_lengths, inputs.state_rows
                )
                no_sums = logits.new_empty(0, 0, dtype=torch.float32)
                return StepOutputs(self.select_wanted(logits, inputs), logits.new_empty(0), no_sums)
            except GraphCaptureError as error:
                log.warning(
                    f"CUDA graphs are off from here on, and decoding is slower: the first capture failed: {error}. "
                    "`engine: {graphs: false}` starts without them"
                )
        embeddings = self.loaded.language_model.embed_tokens(token_ids)
        deepstack_arguments = self.insert_vision_features(embeddings, inputs)
        positions, packed_batch = self.to_device(inputs.positions), self.pack_batch(inputs)
        hidden = run_language_model(self.loaded, embeddings, positions, packed_batch, **deepstack_arguments)
        scores = self.score_targets(hidden, inputs)
        sums = [hidden[first:end].sum(0, dtype=torch.float32) for first, end in inputs.pooled_spans]
        states = torch.stack(sums) if sums else hidden.new_empty(0, 0, dtype=torch.float32)
        return StepOutputs(self.loaded.lm_head(self.select_wanted(hidden, inputs)), scores, states)

    def score_targets(self, hidden: Tensor, inputs: StepInputs) -> Tensor:
        """The logits of a few tokens at a time: all at once would need more memory than the pass itself."""
        scores = torch.empty(len(inputs.target_tokens), dtype=torch.float32, device=hidden.device)
        rows, row_of_target = np.unique(inputs.target_indices, return_inverse=True)
        for first in range(0, len(rows), self.max_logit_rows):
            part = slice(first, first + self.max_logit_rows)
            logits = self.loaded.lm_head(hidden.index_select(0, self.to_device(rows[part]))).float()
            targets = np.flatnonzero((row_of_target >= part.start) & (row_of_target < part.stop))
            row, token = self.to_device(row_of_target[targets] - first), self.to_device(inputs.target_tokens[targets])
            scores.index_copy_(0, self.to_device(targets), logits[row, token] - logits.logsumexp(-1)[row])
        return scores

    def select_wanted(self, rows: Tensor, inputs: StepInputs) -> Tensor:
        """The rows of the tokens whose logits are wanted."""
        if len(inputs.logit_indices) == len(rows):
            return rows
        return rows.index_select(0, self.to_device(inputs.logit_indices))

    def pack_batch(self, inputs: StepInputs) -> PackedBatch:
        lengths, starts, used = inputs.query_lengths, inputs.run_starts, inputs.run_lengths
        run_ends = np.asarray(starts) + used
        cache_ranges = [np.arange(end - count, end) for end, count in zip(run_ends, lengths, strict=True)]
        cache_indices = self.to_device(np.concatenate(cache_ranges))
        flash_layouts = build_flash_layouts(lengths, starts, used, self.loaded.device) if self.has_flash else []
        masks = build_branch_masks(inputs.branch_lengths, used, self.loaded.device)
        packed = PackedBatch(self.cache, cache_indices, lengths, starts, used, flash_layouts, masks)
        if self.loaded.state_shape is not None:
            packed.states = self.states
            packed.state_layout = build_state_layout(
                lengths, inputs.state_rows, self.loaded.state_shape, self.loaded.device
            )
        return packed

    def insert_vision_features(self, embeddings: Tensor, inputs: StepInputs) -> dict[str, Any]:
        """Replace pad tokens by vision features, in place. Returns the arguments for features of deeper layers."""
        if not inputs.vision_spans:
            return {}
        pad_indices = self.to_device(inputs.pad_indices)
        parts = [part for span in inputs.vision_spans for part in self.vision_cache.select_features(*span)]
        features = torch.cat(parts, 1)  # [1 + deepstack layers, pad tokens, hidden]
        embeddings.index_copy_(0, pad_indices, features[0].to(embeddings.dtype))
        if len(features) == 1:
            return {}
        return {"visual_pos_masks": pad_indices, "deepstack_visual_embeds": list(features[1:])}

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return copy_to_device(array, self.loaded.device)


def run_language_model(
    loaded: LoadedModel, embeddings: Tensor, positions: Tensor, packed_batch: PackedBatch, **deepstack_arguments: Any
) -> Tensor:
    """Embeddings [tokens, hidden] and positions [axes, tokens] -> hidden states [tokens, hidden]."""
    out = loaded.language_model(
        inputs_embeds=embeddings[None],
        position_ids=positions[:, None],
        use_cache=False,
        packed=packed_batch,
        **deepstack_arguments,
    )
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def build_decode_function(loaded: LoadedModel) -> DecodeFunction:
    """Token ids to logits, for sequences that decode: what a CUDA graph holds."""

    def decode(token_ids: Tensor, positions: Tensor, packed_batch: PackedBatch) -> Tensor:
        embeddings = loaded.language_model.embed_tokens(token_ids)
        hidden = run_language_model(loaded, embeddings, positions, packed_batch)
        return loaded.lm_head(hidden)  # type: ignore[no-any-return]

    return decode
