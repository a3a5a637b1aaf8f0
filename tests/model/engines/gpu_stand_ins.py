"""On a CPU, in place of what only a GPU has: the flash kernel and the capture of graphs, by their definitions."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model.engines.torch import attention, cuda_graphs, replica


def attend_by_definition(q, k, v, offsets, max_lengths, *, scale, causal=False, seqused_k=None):
    """Packed attention: queries of row i end at offsets[0][i + 1], its keys start at offsets[1][i]."""
    ends, starts = offsets
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for row in range(len(ends) - 1):
        first, last = int(ends[row]), int(ends[row + 1])
        used = int(seqused_k[row]) if seqused_k is not None else int(starts[row + 1] - starts[row])
        assert last - first <= max_lengths[0]
        assert used <= max_lengths[1]
        start = int(starts[row])
        keys, values = (part[start : start + used].repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first:last].float(), keys.float()) * scale
        if causal:  # aligned to the last key
            new = last - first
            scores = scores.masked_fill(~torch.ones(new, used, dtype=torch.bool).tril(used - new), -torch.inf)
        out[first:last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values.float())
    return out


def capture_by_repeating(compute):
    """A graph that computes again at each replay, into the same buffer."""
    output = compute()
    return lambda: output.copy_(compute()), output


def stand_in_for_gpu(monkeypatch: Any) -> None:
    """Engines on a CPU then go the way of those on a GPU."""
    monkeypatch.setattr(attention, "flash_attention_varlen", attend_by_definition)
    monkeypatch.setattr(replica, "has_flash", lambda device, dtype: True)
    monkeypatch.setattr(cuda_graphs.DecodeGraphs.__init__, "__kwdefaults__", {"capture": capture_by_repeating})
