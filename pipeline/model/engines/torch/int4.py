"""Checkpoints whose layers have four-bit weights: AWQ as it is, or dense ones rounded at load.

Only the language model's layers, its experts included; embeddings, head and vision tower stay as they
are. It buys memory and decoding speed, and costs rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import JobError
from pipeline.model.engines.torch.int4_linear import DTYPE, GROUPS, Int4Linear, fits

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the GEMM layout keeps the eight nibbles of an int32
LAYERS = ".language_model.layers."


def load(
    model_class: Any, folder: Path, *, device: torch.device | str, quantize: str | None = None, **how: Any
) -> nn.Module:
    """`from_pretrained`, with the language model's four-bit layers on `device` and the rest on the CPU.

    `how` is what from_pretrained takes: config and dtype at least.
    """
    config, dtype = how["config"], how["dtype"]
    said = getattr(config, "quantization_config", None) or {}
    method = said.get("quant_method")
    if method not in (None, "awq", "fp8"):
        raise JobError(f"model.weights: {folder} is quantised by {method!r}; awq and fp8 are read, and dense weights")
    if quantize and method:
        raise JobError(f"model.quantize: {folder} is quantised already, by {method}; remove the key")
    if method == "awq":
        return load_awq(model_class, folder, device=device, **how)
    how["dtype"] = DTYPE if quantize and dtype == "auto" else dtype
    model = whole(model_class, folder, **how)
    if quantize:
        round_layers(model, device=torch.device(device))
    return model


def whole(model_class: Any, folder: Path, **how: Any) -> nn.Module:
    """from_pretrained, but a weight that the files lack is an error and not a random number."""
    try:
        model, found = model_class.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"model.weights: {folder} cannot be loaded: {error}") from error
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise JobError(
            f"model.weights: {folder} lacks {len(found['missing_keys'])} of the model's weights: {some}, ..."
        )
    return model  # type: ignore[no-any-return]


def round_layers(model: nn.Module, *, device: torch.device) -> None:
    """In place, one by one onto `device`. What the kernel cannot take stays; the caller moves it."""
    for name, module in list(model.named_modules()):
        if LAYERS not in f".{name}":
            continue
        if isinstance(module, nn.Linear) and fits(module.weight, device.type):
            model.set_submodule(name, rounded(module, device=device))
        elif hasattr(module, "gate_up_proj") and fits(module.gate_up_proj[0], device.type):
            model.set_submodule(name, Int4Experts(module, device=device))


def rounded(linear: nn.Linear, *, device: torch.device) -> Int4Linear:
    """The nearest four-bit layer: each group's range is cut into fifteen equal steps."""
    out_features, in_features = linear.weight.shape
    group = next(group for group in GROUPS if in_features % group == 0)
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
        for expert in sorted(set(top_k_index.flatten().tolist())):
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


def load_awq(model_class: Any, folder: Path, *, device: torch.device | str, **how: Any) -> nn.Module:
    """`from_pretrained` without the packages that it asks for: the layers are made before the weights come."""
    said = how["config"].quantization_config
    group = said.get("group_size", 128)
    if (said.get("bits"), said.get("version", "gemm").lower()) != (4, "gemm") or group not in GROUPS:
        raise JobError(f"model.weights: of AWQ, 4 bits in groups of {GROUPS} in GEMM layout are read, not {said}")
    del how["config"].quantization_config
    how["dtype"] = DTYPE if how["dtype"] == "auto" else how["dtype"]
    model = whole(awq_class(model_class, group, said.get("modules_to_not_convert") or ()), folder, **how)
    for name, module in list(model.named_modules()):
        if isinstance(module, AwqLinear):
            model.set_submodule(name, module.to(device).made())
    return model


def awq_class(model_class: Any, group: int, skip: Sequence[str]) -> Any:
    """A model class whose layers hold what an AWQ checkpoint does."""

    def with_empty_layers(self: Any, config: Any) -> None:
        model_class.__init__(self, config)
        for name, module in list(self.named_modules()):
            if LAYERS in f".{name}" and isinstance(module, nn.Linear) and not any(part in name for part in skip):
                self.set_submodule(name, AwqLinear(module, group))

    # transformers finds how to rename a checkpoint's weights by the class's name and module
    same = {"__init__": with_empty_layers, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), same)


class AwqLinear(nn.Module):
    """What an AWQ checkpoint holds of a layer, until it is packed."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, group: int):
        super().__init__()
        wide, deep = linear.weight.shape
        self.register_buffer("qweight", torch.empty(deep, wide // 8, dtype=torch.int32))
        self.register_buffer("qzeros", torch.empty(deep // group, wide // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.empty(deep // group, wide, dtype=linear.weight.dtype))
        self.bias = linear.bias

    def made(self) -> nn.Module:
        nibbles, zeros, scales = awq_nibbles(self.qweight).T, awq_nibbles(self.qzeros).T, self.scales.T
        if fits(nibbles, nibbles.device.type):
            return Int4Linear(nibbles, scales, (8 - zeros) * scales, self.bias)
        group = nibbles.shape[1] // scales.shape[1]
        weight = (nibbles - zeros.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)
        return linear(weight, self.bias)


def awq_nibbles(words: Tensor) -> Tensor:
    """[rows, words] of int32 -> [rows, 8 * words] in 0..15, in the order of the weights."""
    shifts = torch.tensor([4 * place for place in AWQ_ORDER], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(1)
