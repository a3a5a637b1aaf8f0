"""Packed tokens of many rows -> what each attends to. The one attention of text and vision, CPU and CUDA.

No padding and no masks: text rows write keys and values to their own run of the cache and read that
run; frames and windows of pictures attend to themselves. On CUDA in half precision both are one call
of torch's own flash attention. It is told where each run starts and how much of it is used, which
the kernel that ships with torch has understood since 2.4; a block table, for a paged cache, it
refuses without FlashAttention 3. Elsewhere it is one SDPA per row, which on a CPU beats any block
mask, and for vision one per size of segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

ATTENTION_NAME = "packed_flash"  # with `flash` in it, transformers hands a whole packed batch over at once


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cumulative_lengths: tuple[Tensor, Tensor],
    max_lengths: tuple[int, int],
    **options: Any,
) -> Tensor:
    """[tokens, heads, dim] each. `torch.nn.attention.varlen` wraps this operator; only since 2.12 does it take
    `seqused_k`, and fewer heads of keys than of queries."""
    causal = options.pop("causal", False)
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, *cumulative_lengths, *max_lengths, 0.0, causal, False, **options
    )[0]
    return out


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class KVCache:
    """Keys and values of all rows. The last token is nobody's: padding is written there."""

    keys: Tensor  # [layers, tokens + 1, heads, dim]
    values: Tensor

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVCache:
        layers, tokens, heads, dim = shape
        pair = torch.empty(2, layers, tokens + 1, heads, dim, dtype=dtype, device=device)
        return cls(pair[0], pair[1])


@dataclass(slots=True)
class FlashLayout:
    """Where rows are, for the flash kernel: int32 on its device."""

    query_ends: Tensor  # [rows + 1] of each row's queries, from 0
    run_starts: Tensor  # [rows + 1] of their runs; the kernel reads one past the last
    run_lengths: Tensor  # [rows] tokens in the run after this step
    max_lengths: tuple[int, int]  # queries of a row, tokens of a run

    @classmethod
    def from_lengths(
        cls, query_lengths: Sequence[int], run_starts: Sequence[int], run_lengths: Sequence[int], device: torch.device
    ) -> FlashLayout:
        ends = np.concatenate([[0], np.cumsum(query_lengths)])
        host = [torch.from_numpy(np.asarray(part, np.int32)) for part in (ends, [*run_starts, 0], run_lengths)]
        sent = [part.to(device, non_blocking=True) for part in host]
        return cls(sent[0], sent[1], sent[2], (max(query_lengths), max(run_lengths)))


@dataclass(slots=True)
class PackedBatch:
    """Which rows the tokens of a step belong to, and where those rows' runs are."""

    cache: KVCache
    cache_indices: Tensor  # [tokens] where in the cache each goes
    query_lengths: Sequence[int] = ()  # [rows] tokens of each row in this step
    run_starts: Sequence[int] = ()  # [rows] of their runs
    run_lengths: Sequence[int] = ()  # [rows] tokens in the run after this step
    flash_layout: FlashLayout | None = None  # the same for the flash kernel, where there is one


@dataclass(slots=True)
class SegmentGroup:
    """Segments of one length: which tokens they are, and how many segments."""

    tokens: Tensor | slice
    count: int


def group_segments(lengths: Sequence[int], device: torch.device) -> list[SegmentGroup]:
    """Segments by length, so that a picture's many windows are a few batched calls."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    made = []
    for length in np.unique(sizes):
        at = starts[sizes == length]
        tokens: Tensor | slice = slice(int(at[0]), int(at[0] + length * len(at)))
        if at[-1] - at[0] != length * (len(at) - 1):
            tokens = torch.from_numpy((at[:, None] + np.arange(length)).ravel()).to(device)
        made.append(SegmentGroup(tokens, len(at)))
    return made


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if packed is None:
        return attend_within_segments(q, k, v, scaling, rest)[None], None
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]
    keys.index_copy_(0, packed.cache_indices, k)
    values.index_copy_(0, packed.cache_indices, v)
    if (runs := packed.flash_layout) is not None:
        how = {"causal": True, "scale": scaling, "seqused_k": runs.run_lengths}
        return flash_attention_varlen(
            q.contiguous(), keys, values, (runs.query_ends, runs.run_starts), runs.max_lengths, **how
        )[None], None
    return attend_to_cache(query, keys, values, packed, scaling)[None], None


def attend_to_cache(query: Tensor, keys: Tensor, values: Tensor, packed: PackedBatch, scaling: float | None) -> Tensor:
    """Each row's new tokens against its run, row by row."""
    heads, dim = keys.shape[1:]
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    rows = zip(torch.split(query, list(packed.query_lengths), 2), packed.run_starts, packed.run_lengths, strict=True)
    out = []
    for q, start, used in rows:
        k, v, new = keys.narrow(2, start, used), values.narrow(2, start, used), q.shape[2]
        if new == 1:  # a group of query heads is as good as a group of queries, and reads the keys once
            out.append(sdpa(q.reshape(1, heads, -1, dim), k, v, scale=scaling).view(1, -1, dim))
        else:
            mask = None if new == used else torch.ones(new, used, dtype=torch.bool, device=q.device).tril(used - new)
            seen = sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
            out.append(seen[0].transpose(0, 1))
    return torch.cat(out)


def attend_within_segments(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, vision_arguments: dict[str, Any]
) -> Tensor:
    """Each frame or window of pictures against itself."""
    ends, most = vision_arguments["cu_seq_lens_q"], vision_arguments["max_length_q"]
    if id(ends) not in vision_arguments["segments"]:
        return flash_attention_varlen(query, key, value.contiguous(), (ends, ends), (most, most), scale=scaling)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in vision_arguments["segments"][id(ends)]:
        a, b, c = (
            part[group.tokens].view(group.count, -1, *part.shape[1:]).transpose(1, 2) for part in (query, key, value)
        )
        out[group.tokens] = sdpa(a, b, c, scale=scaling).transpose(1, 2).flatten(0, 1)
    return out
