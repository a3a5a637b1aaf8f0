"""Attention over packed tokens, of text and of vision, on CPU and CUDA. There is no padding.

Text tokens write keys and values to their sequence's run of the KV cache and attend to that run. Vision tokens attend
within their frame or window. On CUDA in half precision both are one call of torch's flash attention kernel, which is
told where each run starts and how much of it is used (the kernel in torch takes no block table, so there are no pages).
Elsewhere text is one SDPA call per sequence, which on a CPU beats any block mask, and vision one per segment length.
On a CPU new tokens attend to the earlier tokens of their run and to themselves in two calls, because a mask over both
would take more time than the second call. Where the earlier tokens are few, one call that computes them again is
faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa

from pipeline.model.engines.torch.host_memory import copy_to_device
from pipeline.model.engines.torch.kv_cache import PackedBatch

FEW_EARLIER = 4  # new tokens for each earlier one, from which on one call is faster than two on a CPU
ATTENTION_NAME = "packed_flash"  # transformers hands a packed batch over whole where the name contains `flash`


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def flash_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, offsets: tuple[Tensor, Tensor], max_lengths: tuple[int, int], **options: Any
) -> Tensor:
    """[tokens, heads, dim] each; offsets and longest lengths of queries and of keys.

    `torch.nn.attention.varlen` wraps this operator, but takes `seqused_k` and grouped heads only since torch 2.12.
    """
    arguments = *offsets, *max_lengths, 0.0, options.pop("causal", False), False
    return torch.ops.aten._flash_attention_forward(q, k, v, *arguments, **options)[0]  # type: ignore[no-any-return]


@dataclass(slots=True)
class SegmentGroup:
    """Segments of one length: which tokens they are, and how many segments."""

    tokens: Tensor | slice
    count: int


def group_segments(lengths: Sequence[int] | NDArray[np.int64], device: torch.device) -> list[SegmentGroup]:
    """Group segments by length, so that a picture's many windows take a few batched calls."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    groups = []
    for length in np.unique(sizes):
        group_starts = starts[sizes == length]
        count = len(group_starts)
        tokens: Tensor | slice = slice(int(group_starts[0]), int(group_starts[0] + length * count))
        if group_starts[-1] - group_starts[0] != length * (count - 1):  # other segments lie between them
            tokens = copy_to_device((group_starts[:, None] + np.arange(length)).ravel(), device)
        groups.append(SegmentGroup(tokens, count))
    return groups


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
    segments: Mapping[str, Sequence[SegmentGroup]] | None = None,  # given where vision does not use flash attention
    **rest: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if packed is None:
        if segments is not None:
            return attend_within_segments(q, k, v, scaling, segments[module.segment_kind])[None], None
        ends, longest = rest["cu_seq_lens_q"], rest["max_length_q"]
        out = flash_attention_varlen(q, k, v.contiguous(), (ends, ends), (longest, longest), scale=scaling)
        return out[None], None
    keys, values = packed.cache.keys[module.layer_idx], packed.cache.values[module.layer_idx]
    keys.index_copy_(0, packed.cache_indices, k)
    values.index_copy_(0, packed.cache_indices, v)
    if not packed.flash_layouts:
        return attend_to_cache(query, keys, values, packed, scaling)[None], None
    outputs, parts = [], torch.split(q, [layout.tokens for layout in packed.flash_layouts])
    for part, layout in zip(parts, packed.flash_layouts, strict=True):
        options = {"causal": layout.max_lengths[0] > 1, "scale": scaling, "seqused_k": layout.run_lengths}
        offsets = layout.query_offsets, layout.run_starts
        outputs.append(flash_attention_varlen(part.contiguous(), keys, values, offsets, layout.max_lengths, **options))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def attend_to_cache(query: Tensor, keys: Tensor, values: Tensor, packed: PackedBatch, scaling: float | None) -> Tensor:
    """The new tokens of each sequence against its run: [1, heads, tokens, dim] -> [tokens, heads, dim]."""
    kv_heads, dim = keys.shape[1:]
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    queries = torch.split(query, list(packed.query_lengths), 2)
    outputs = []
    for number, (q, start, used) in enumerate(zip(queries, packed.run_starts, packed.run_lengths, strict=True)):
        k, v, new = keys.narrow(2, start, used), values.narrow(2, start, used), q.shape[2]
        if new == 1:  # query heads of one group pass as several queries of their key head: keys are read once
            outputs.append(sdpa(q.reshape(1, kv_heads, -1, dim), k, v, scale=scaling).view(1, -1, dim))
        elif q.is_cpu and new < used and number not in packed.masks:
            outputs.append(attend_to_earlier_and_new(q, k, v, scaling)[0].transpose(0, 1))
        else:
            mask = packed.masks.get(number)
            if mask is None and new < used:
                mask = torch.ones(new, used, dtype=torch.bool, device=q.device).tril(used - new)
                packed.masks[number] = mask  # for the layers that follow
            out = sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
            outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_to_earlier_and_new(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention of the last tokens of a run, [1, heads, tokens, dim], to the whole run, on a CPU.

    The softmax over both parts weighs each part's output by that part's sum of exponentials.
    """
    new = query.shape[2]
    earlier = key.shape[2] - new
    if FEW_EARLIER * earlier <= new:
        padded = pad(query, (0, 0, earlier, 0))
        return sdpa(padded, key, value, is_causal=True, scale=scaling, enable_gqa=True)[:, :, earlier:]
    lengths = [earlier, new]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (k_earlier, k_new), (v_earlier, v_new) = (torch.split(part, lengths, 2) for part in (key, value))
    out_earlier, sums_earlier = kernel(query, k_earlier, v_earlier, scale=scaling)
    out_new, sums_new = kernel(query, k_new, v_new, is_causal=True, scale=scaling)
    return torch.lerp(out_new, out_earlier, (sums_earlier - sums_new).sigmoid()[..., None].to(query.dtype))


def attend_within_segments(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, groups: Sequence[SegmentGroup]
) -> Tensor:
    """Each frame or window against itself."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in groups:
        a, b, c = (
            part[group.tokens].view(group.count, -1, *part.shape[1:]).transpose(1, 2) for part in (query, key, value)
        )
        out[group.tokens] = sdpa(a, b, c, scale=scaling).transpose(1, 2).flatten(0, 1)
    return out
