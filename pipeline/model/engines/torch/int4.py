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
from pipeline.model.engines.torch.checkpoint import FP8_BLOCK_SIZE, Checkpoint
from pipeline.model.engines.torch.int4_linear import GROUP_SIZES, Int4Linear, can_use_kernel
from pipeline.model.engines.torch.shard import WeightShard, find_group_size

AWQ_NIBBLE_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the GEMM layout keeps the eight nibbles of an int32
TEXT_LAYERS = ".language_model.layers."


def find_group_sizes(config_json: Mapping[str, Any], quantize: str | None) -> tuple[int, ...]:
    """The sizes that groups of weights may have, by a config.json and what the job wants; dense weights have none."""
    found = config_json.get("quantization_config") or {}
    method = found.get("quant_method")
    if method not in (None, "awq", "fp8"):
        raise JobError(f"model.weights: they are quantised by {method!r}; awq and fp8 are read, and dense weights")
    if quantize and method:
        raise JobError(f"model.quantize: the weights are quantised already, by {method}; remove the key")
    if method == "awq":
        group = found.get("group_size", 128)
        if (found.get("bits"), found.get("version", "gemm").lower()) != (4, "gemm") or group not in GROUP_SIZES:
            raise JobError(
                f"model.weights: of AWQ, 4 bits in groups of {GROUP_SIZES} in GEMM layout are read, not {found}"
            )
        return (group,)
    blocks = found.get("weight_block_size") or (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE)
    if method == "fp8" and tuple(blocks) != (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE):
        raise JobError(f"model.weights: of fp8, blocks of {FP8_BLOCK_SIZE} x {FP8_BLOCK_SIZE} are read, not {blocks}")
    return GROUP_SIZES if quantize else ()


def quantize_layer(name: str, layer: nn.Module, *, group_size: int, device: torch.device) -> nn.Module | None:
    """What takes a dense layer's place; None where the kernel cannot take it."""
    if TEXT_LAYERS not in f".{name}":
        return None
    if isinstance(layer, nn.Linear) and can_use_kernel(layer.weight, device.type):
        return quantize_linear(layer, device=device, group_size=group_size)
    experts = getattr(layer, "gate_up_proj", None)
    if isinstance(experts, Tensor) and can_use_kernel(experts[0], device.type):
        return Int4Experts(layer, device=device)
    return None


def quantize_linear(dense: nn.Linear, *, device: torch.device, group_size: int | None = None) -> Int4Linear:
    """The nearest four-bit layer: each group's range is cut into fifteen equal steps."""
    out_features, in_features = dense.weight.shape
    group_size = group_size or find_group_size(in_features, GROUP_SIZES)
    weight = dense.weight.detach().to(device, torch.float32).view(out_features, -1, group_size)
    low, high = weight.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-6)
    nibbles = ((weight - low) / scale).round().clamp(0, 15).to(torch.int32).view(out_features, in_features)
    scales, zeros = (value.squeeze(-1).to(dense.weight.dtype) for value in (scale, low + 8 * scale))
    return Int4Linear(nibbles, scales, zeros, None if dense.bias is None else dense.bias.to(device))


class Int4Experts(nn.Module):
    """The experts of a mixture, each a pair of four-bit layers; only those that a token asks for are read."""

    def __init__(self, dense: Any, *, device: torch.device):
        super().__init__()
        self.act_fn = dense.act_fn
        self.gate_up = nn.ModuleList(
            quantize_linear(build_dense_linear(weight), device=device) for weight in dense.gate_up_proj
        )
        self.down = nn.ModuleList(
            quantize_linear(build_dense_linear(weight), device=device) for weight in dense.down_proj
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        mixed = torch.zeros_like(hidden_states)
        for expert in sorted({*top_k_index.flatten().tolist()} - {len(self.down)}):  # which stands for another rank's
            rows, place = torch.where(top_k_index == expert)
            gate, up = self.gate_up[expert](hidden_states[rows]).chunk(2, -1)
            said = self.down[expert](self.act_fn(gate) * up) * top_k_weights[rows, place, None]
            mixed.index_add_(0, rows, said.to(mixed.dtype))
        return mixed


def build_dense_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A dense layer of weights that exist already."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), bias  # type: ignore[assignment]
    return made


def load_awq_layer(
    checkpoint: Checkpoint,
    name: str,
    weight_shard: WeightShard | None,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """An AWQ checkpoint's layer, or the part of it that a rank holds. Its files have [in, out], eight to a word."""
    whole, held = checkpoint.get_shape(f"{name}.qweight"), []
    for kind, per_word in (("qweight", 8), ("qzeros", 8), ("scales", 1)):
        per_row = whole[0] // checkpoint.get_shape(f"{name}.{kind}")[0]
        held.append(
            checkpoint.read_weight(f"{name}.{kind}", weight_shard and to_awq_shard(weight_shard, per_row, per_word)).to(
                device
            )
        )
    nibbles, zeros, scales = unpack_awq_nibbles(held[0]).T, unpack_awq_nibbles(held[1]).T, held[2].T.to(dtype)
    if can_use_kernel(nibbles, device.type):
        return Int4Linear(nibbles, scales, (8 - zeros) * scales, bias)
    group = nibbles.shape[1] // scales.shape[1]
    weight = (nibbles - zeros.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)
    return build_dense_linear(weight, bias)


def to_awq_shard(weight_shard: WeightShard, inputs_per_row: int, outputs_per_word: int) -> WeightShard:
    """The same part of [out, in] where it lies as [in / per_row, out / per_word]."""
    each = inputs_per_row if weight_shard.dim else outputs_per_word
    return WeightShard(1 - weight_shard.dim, (weight_shard.span[0] // each, weight_shard.span[1] // each))


def unpack_awq_nibbles(words: Tensor) -> Tensor:
    """[rows, words] of int32 -> [rows, 8 * words] in 0..15, in the order of the weights."""
    shifts = torch.tensor([4 * place for place in AWQ_NIBBLE_ORDER], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(1)
