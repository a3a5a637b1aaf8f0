"""Builds four-bit layers: from an AWQ checkpoint as it is, or by rounding dense weights at load.

Only layers of the language model are quantised, with their experts; embeddings, head and vision tower stay dense. This
saves memory and makes decoding faster; the price is the rounding error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import JobError
from pipeline.model.engines.torch.checkpoint import FP8_BLOCK_SIZE, Checkpoint
from pipeline.model.engines.torch.experts import WideInt4Experts
from pipeline.model.engines.torch.int4_linear import GROUP_SIZES, Int4Linear, can_use_kernel, round_to_nibbles
from pipeline.model.engines.torch.shard import WeightLayout, WeightShard

AWQ_NIBBLE_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the GEMM layout keeps the eight nibbles of an int32


def find_group_sizes(config_json: Mapping[str, Any], quantize: str | None) -> tuple[int, ...]:
    """The group sizes that four-bit weights may have, by config.json and the job; empty for dense weights."""
    quantization = config_json.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method not in (None, "awq", "fp8"):
        raise JobError(f"model.weights: quantised by {method!r}; only awq, fp8 and dense weights can be read")
    if quantize and method:
        raise JobError(f"model.quantize: the weights are quantised already, by {method}; remove the key")
    if method == "awq":
        group_size, version = quantization.get("group_size", 128), quantization.get("version", "gemm").lower()
        if (quantization.get("bits"), version) != (4, "gemm") or group_size not in GROUP_SIZES:
            raise JobError(
                f"model.weights: AWQ is read with 4 bits in groups of {GROUP_SIZES} in GEMM layout, not {quantization}"
            )
        return (group_size,)
    blocks = quantization.get("weight_block_size") or (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE)
    if method == "fp8" and tuple(blocks) != (FP8_BLOCK_SIZE, FP8_BLOCK_SIZE):
        raise JobError(f"model.weights: fp8 is read in blocks of {FP8_BLOCK_SIZE} x {FP8_BLOCK_SIZE}, not {blocks}")
    return GROUP_SIZES if quantize else ()


def quantize_layer(layer: nn.Module, *, group_size: int, device: torch.device) -> nn.Module | None:
    """The four-bit layer that replaces a dense one; None where the kernel cannot take it."""
    if isinstance(layer, nn.Linear) and can_use_kernel(layer.weight, device.type):
        return quantize_linear(layer, device=device, group_size=group_size)
    experts = getattr(layer, "gate_up_proj", None)
    if isinstance(experts, Tensor) and can_use_kernel(experts[0], device.type):
        return WideInt4Experts(layer, device=device) if device.type == "cuda" else Int4Experts(layer, device=device)
    return None


def quantize_linear(dense: nn.Linear, *, device: torch.device, group_size: int | None = None) -> Int4Linear:
    nibbles, scales, zeros = round_to_nibbles(dense.weight.detach().to(device), group_size)
    return Int4Linear(nibbles, scales, zeros, None if dense.bias is None else dense.bias.to(device))


class Int4Experts(nn.Module):
    """The experts of a mixture on CPU, each a pair of four-bit layers. Only experts that a token chose are read."""

    def __init__(self, dense: Any, *, device: torch.device):
        super().__init__()
        self.act_fn = dense.act_fn
        self.gate_up, self.down = (
            nn.ModuleList(quantize_linear(build_dense_linear(weight), device=device) for weight in weights)
            for weights in (dense.gate_up_proj, dense.down_proj)
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        mixed = torch.zeros_like(hidden_states)
        not_here = len(self.down)  # the index that stands for experts of other ranks
        for expert in sorted({*top_k_index.flatten().tolist()} - {not_here}):
            rows, choices = torch.where(top_k_index == expert)
            gate, up = self.gate_up[expert](hidden_states[rows]).chunk(2, -1)
            weighted = self.down[expert](self.act_fn(gate) * up) * top_k_weights[rows, choices, None]
            mixed.index_add_(0, rows, weighted.to(mixed.dtype))
        return mixed


def build_dense_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A dense layer around existing weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), bias  # type: ignore[assignment]
    return layer


def load_awq_layer(
    checkpoint: Checkpoint, name: str, weight_shard: WeightShard | None, bias: Tensor | None, layout: WeightLayout
) -> nn.Module:
    """A layer of an AWQ checkpoint, or a rank's part of it. Its files store [in, out], eight nibbles to a word."""
    in_features, tensors = checkpoint.get_shape(f"{name}.qweight")[0], {}
    for kind, outputs_per_word in (("qweight", 8), ("qzeros", 8), ("scales", 1)):
        inputs_per_row = in_features // checkpoint.get_shape(f"{name}.{kind}")[0]
        part = weight_shard and to_awq_shard(weight_shard, inputs_per_row, outputs_per_word)
        tensors[kind] = checkpoint.read_weight(f"{name}.{kind}", part).to(layout.device)
    nibbles, zeros = (unpack_awq_nibbles(tensors[kind]).T for kind in ("qweight", "qzeros"))
    scales = tensors["scales"].T.to(layout.dtype)
    if can_use_kernel(nibbles, layout.device.type):
        return Int4Linear(nibbles, scales, (8 - zeros) * scales, bias)
    group_size = nibbles.shape[1] // scales.shape[1]
    weight = (nibbles - zeros.repeat_interleave(group_size, 1)) * scales.repeat_interleave(group_size, 1)
    return build_dense_linear(weight, bias)


def to_awq_shard(weight_shard: WeightShard, inputs_per_row: int, outputs_per_word: int) -> WeightShard:
    """The same part of a weight [out, in] in a tensor [in / inputs_per_row, out / outputs_per_word]."""
    divisor = inputs_per_row if weight_shard.dim else outputs_per_word
    spans = [(first // divisor, end // divisor) for first, end in (weight_shard.span, *weight_shard.further_spans)]
    return WeightShard(1 - weight_shard.dim, spans[0], tuple(spans[1:]))


def unpack_awq_nibbles(words: Tensor) -> Tensor:
    """int32 [rows, words] becomes [rows, 8 * words] in 0..15, in the order of the weights."""
    shifts = torch.tensor([4 * nibble for nibble in AWQ_NIBBLE_ORDER], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(1)
