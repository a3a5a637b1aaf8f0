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

NAME = "packed_flash"  # with `flash` in it, transformers hands a whole packed batch over at once


def varlen(q: Tensor, k: Tensor, v: Tensor, bounds: tuple[Tensor, Tensor], most: tuple[int, int], **how: Any) -> Tensor:
    """[tokens, heads, dim] each. `torch.nn.attention.varlen` wraps this operator; only since 2.12 does it take
    `seqused_k`, and fewer heads of keys than of queries."""
    causal = how.pop("causal", False)
    out: Tensor = torch.ops.aten._flash_attention_forward(q, k, v, *bounds, *most, 0.0, causal, False, **how)[0]
    return out


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class Cache:
    """Keys and values of all rows. The last token is nobody's: padding is written there."""

    keys: Tensor  # [layers, tokens + 1, heads, dim]
    values: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Cache:
        layers, tokens, heads, dim = shape
        pair = torch.empty(2, layers, tokens + 1, heads, dim, dtype=dtype, device=device)
        return cls(pair[0], pair[1])


@dataclass(slots=True)
class Runs:
    """Where rows are, for the flash kernel: int32 on its device."""

    ends: Tensor  # [rows + 1] of each row's queries, from 0
    starts: Tensor  # [rows + 1] of their runs; the kernel reads one past the last
    used: Tensor  # [rows] tokens in the run after this step
    most: tuple[int, int]  # queries of a row, tokens of a run

    @classmethod
    def of(cls, lengths: Sequence[int], starts: Sequence[int], used: Sequence[int], device: torch.device) -> Runs:
        ends = np.concatenate([[0], np.cumsum(lengths)])
        host = [torch.from_numpy(np.asarray(part, np.int32)) for part in (ends, [*starts, 0], used)]
        sent = [part.to(device, non_blocking=True) for part in host]
        return cls(sent[0], sent[1], sent[2], (max(lengths), max(used)))


@dataclass(slots=True)
class Packed:
    """Which rows the tokens of a step belong to, and where those rows' runs are."""

    cache: Cache
    index: Tensor  # [tokens] where in the cache each goes
    lengths: Sequence[int] = ()  # [rows] tokens of each row in this step
    starts: Sequence[int] = ()  # [rows] of their runs
    used: Sequence[int] = ()  # [rows] tokens in the run after this step
    runs: Runs | None = None  # the same for the flash kernel, where there is one


@dataclass(slots=True)
class Group:
    """Segments of one length: which tokens they are, and how many segments."""

    tokens: Tensor | slice
    count: int


def groups(lengths: Sequence[int], device: torch.device) -> list[Group]:
    """Segments by length, so that a picture's many windows are a few batched calls."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    made = []
    for length in np.unique(sizes):
        at = starts[sizes == length]
        tokens: Tensor | slice = slice(int(at[0]), int(at[0] + length * len(at)))
        if at[-1] - at[0] != length * (len(at) - 1):
            tokens = torch.from_numpy((at[:, None] + np.arange(length)).ravel()).to(device)
        made.append(Group(tokens, len(at)))
    return made


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Packed | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if packed is None:
        return see(q, k, v, scaling, rest)[None], None
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]
    keys.index_copy_(0, packed.index, k)
    values.index_copy_(0, packed.index, v)
    if (runs := packed.runs) is not None:
        how = {"causal": True, "scale": scaling, "seqused_k": runs.used}
        return varlen(q.contiguous(), keys, values, (runs.ends, runs.starts), runs.most, **how)[None], None
    return read(query, keys, values, packed, scaling)[None], None


def read(query: Tensor, keys: Tensor, values: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    """Each row's new tokens against its run, row by row."""
    heads, dim = keys.shape[1:]
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    rows = zip(torch.split(query, list(packed.lengths), 2), packed.starts, packed.used, strict=True)
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


def see(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, rest: dict[str, Any]) -> Tensor:
    """Each frame or window of pictures against itself."""
    ends, most = rest["cu_seq_lens_q"], rest["max_length_q"]
    if id(ends) not in rest["segments"]:
        return varlen(q, k, v.contiguous(), (ends, ends), (most, most), scale=scaling)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for group in rest["segments"][id(ends)]:
        a, b, c = (part[group.tokens].view(group.count, -1, *part.shape[1:]).transpose(1, 2) for part in (q, k, v))
        out[group.tokens] = sdpa(a, b, c, scale=scaling).transpose(1, 2).flatten(0, 1)
    return out
