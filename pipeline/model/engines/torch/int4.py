"""Checkpoints whose layers have four-bit weights: AWQ as it is, or dense ones rounded at load.

Only the language model's layers, its experts included; embeddings, head and vision tower stay as they
are. It buys memory and decoding speed, and costs rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import JobError
from pipeline.model.engines.torch.checkpoint import FP8_BLOCK, Weights
from pipeline.model.engines.torch.int4_linear import GROUPS, Int4Linear, fits
from pipeline.model.engines.torch.shard import Part, unit

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the GEMM layout keeps the eight nibbles of an int32
LAYERS = ".language_model.layers."


def groups(said: Mapping[str, Any], quantize: str | None) -> tuple[int, ...]:
    """The sizes that groups of weights may have, by a config.json and what the job wants; dense weights have none."""
    found = said.get("quantization_config") or {}
    method = found.get("quant_method")
    if method not in (None, "awq", "fp8"):
        raise JobError(f"model.weights: they are quantised by {method!r}; awq and fp8 are read, and dense weights")
    if quantize and method:
        raise JobError(f"model.quantize: the weights are quantised already, by {method}; remove the key")
    if method == "awq":
        group = found.get("group_size", 128)
        if (found.get("bits"), found.get("version", "gemm").lower()) != (4, "gemm") or group not in GROUPS:
            raise JobError(f"model.weights: of AWQ, 4 bits in groups of {GROUPS} in GEMM layout are read, not {found}")
        return (group,)
    blocks = found.get("weight_block_size") or (FP8_BLOCK, FP8_BLOCK)
    if method == "fp8" and tuple(blocks) != (FP8_BLOCK, FP8_BLOCK):
        raise JobError(f"model.weights: of fp8, blocks of {FP8_BLOCK} x {FP8_BLOCK} are read, not {blocks}")
    return GROUPS if quantize else ()


def round_layer(name: str, module: nn.Module, *, group: int, device: torch.device) -> nn.Module | None:
    """What takes a dense layer's place; None where the kernel cannot take it."""
    if LAYERS not in f".{name}":
        return None
    if isinstance(module, nn.Linear) and fits(module.weight, device.type):
        return rounded(module, device=device, group=group)
    experts = getattr(module, "gate_up_proj", None)
    if isinstance(experts, Tensor) and fits(experts[0], device.type):
        return Int4Experts(module, device=device)
    return None


def rounded(linear: nn.Linear, *, device: torch.device, group: int | None = None) -> Int4Linear:
    """The nearest four-bit layer: each group's range is cut into fifteen equal steps."""
    out_features, in_features = linear.weight.shape
    group = group or unit(in_features, GROUPS)
    weight = linear.weight.detach().to(device, torch.float32).view(out_features, -1, group)
    low, high = weight.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-6)
    nibbles = ((weight - low) / scale).round().clamp(0, 15).to(torch.int32).view(out_features, in_features)
    scales, zeros = (value.squeeze(-1).to(linear.weight.dtype) for value in (scale, low + 8 * scale))
    return Int4Linear(nibbles, scales, zeros, None if linear.bias is None else linear.bias.to(device))


class Int4Experts(nn.Module):
    """The experts of a mixture, each a pair of four-bit layers; only those that a token asks for are read."""

    def __init__(self, dense: Any, *, device: torch.device):
        super().__init__()
        self.act_fn = dense.act_fn
        self.gate_up = nn.ModuleList(rounded(linear(weight), device=device) for weight in dense.gate_up_proj)
        self.down = nn.ModuleList(rounded(linear(weight), device=device) for weight in dense.down_proj)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        mixed = torch.zeros_like(hidden_states)
        for expert in sorted({*top_k_index.flatten().tolist()} - {len(self.down)}):  # which stands for another rank's
            rows, place = torch.where(top_k_index == expert)
            gate, up = self.gate_up[expert](hidden_states[rows]).chunk(2, -1)
            said = self.down[expert](self.act_fn(gate) * up) * top_k_weights[rows, place, None]
            mixed.index_add_(0, rows, said.to(mixed.dtype))
        return mixed


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A dense layer of weights that exist already."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), bias  # type: ignore[assignment]
    return made


def awq(
    files: Weights, name: str, part: Part | None, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """An AWQ checkpoint's layer, or the part of it that a rank holds. Its files have [in, out], eight to a word."""
    whole, held = files.shape(f"{name}.qweight"), []
    for kind, per_word in (("qweight", 8), ("qzeros", 8), ("scales", 1)):
        per_row = whole[0] // files.shape(f"{name}.{kind}")[0]
        held.append(files.read(f"{name}.{kind}", part and turned(part, per_row, per_word)).to(device))
    nibbles, zeros, scales = awq_nibbles(held[0]).T, awq_nibbles(held[1]).T, held[2].T.to(dtype)
    if fits(nibbles, device.type):
        return Int4Linear(nibbles, scales, (8 - zeros) * scales, bias)
    group = nibbles.shape[1] // scales.shape[1]
    weight = (nibbles - zeros.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)
    return linear(weight, bias)


def turned(part: Part, per_row: int, per_word: int) -> Part:
    """The same part of [out, in] where it lies as [in / per_row, out / per_word]."""
    each = per_row if part.dim else per_word
    return Part(1 - part.dim, (part.span[0] // each, part.span[1] // each))


def awq_nibbles(words: Tensor) -> Tensor:
    """[rows, words] of int32 -> [rows, 8 * words] in 0..15, in the order of the weights."""
    shifts = torch.tensor([4 * place for place in AWQ_ORDER], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(1)
