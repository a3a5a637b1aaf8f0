"""Linear layers of four-bit weights: read from AWQ checkpoints, or rounded from dense ones at load.

    weight = (nibble - 8) * scale + zero            one scale and zero for `group` inputs of an output

Few rows go through torch's own int4 kernel, which reads a quarter of the memory; many rows through a
dense copy made on the fly, because a real matrix product then costs less than it. The kernel takes
bfloat16; other types always go the second way. It buys memory and decoding speed, and costs rounding.

The kernel's layout of nibbles depends on device and processor, and torch can pack but not unpack. So
the layout is learnt, once, from how a numbered tile is packed; weights are kept in one form only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import JobError

DTYPE = torch.bfloat16  # of activations that the kernel takes; the best choice where the job leaves it open
KERNEL_ROWS = {"cpu": 1024, "cuda": 64}  # above it a dense copy pays: measured on CPU, estimated on CUDA
GROUPS = (128, 64, 32)
CHUNK = 2**24  # weights made dense at a time: bounds what is held beside the result
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the GEMM layout keeps the eight nibbles of an int32
LAYERS = ".language_model.layers."


class Int4Linear(nn.Module):
    """A linear layer, packed for the device it was made on; to move it is to make it anew."""

    packed: Tensor
    scales_zeros: Tensor
    bias: Tensor | None

    def __init__(self, nibbles: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None):
        """`nibbles` [out, in] in 0..15; `scales` and `zeros` [out, in / group] in the dtype to compute in."""
        super().__init__()
        self.out_features, self.in_features = nibbles.shape
        self.group = self.in_features // scales.shape[1]
        self.register_buffer("packed", pack(nibbles))
        self.register_buffer("scales_zeros", torch.stack([scales, zeros], -1).transpose(0, 1).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(scales.dtype))

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, self.in_features)
        if flat.shape[0] <= KERNEL_ROWS[flat.device.type] and flat.dtype == DTYPE:
            kernel = torch._weight_int4pack_mm if flat.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
            out = kernel(flat, self.packed, self.group, self.scales_zeros)
            out = out if self.bias is None else out + self.bias
        else:
            out = functional.linear(flat, self.dense(flat.dtype), self.bias)
        return out.reshape(*rows.shape[:-1], self.out_features)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight as [out, in]."""
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.packed.device)
        scales, zeros = self.scales_zeros.to(dtype).transpose(0, 1).unsqueeze(2).unbind(-1)
        height, _, _ = layout(weight.device.type, self.in_features)
        step = max(height, CHUNK // self.in_features // height * height)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            grouped = unpack(self.packed, self.in_features, start // height, (start + step) // height).to(dtype)
            grouped = grouped.view(-1, self.in_features // self.group, self.group)
            weight[part] = torch.addcmul(zeros[part], grouped.sub_(8), scales[part]).flatten(1)
        return weight

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"


def pack(nibbles: Tensor) -> Tensor:
    """[out, in] in 0..15 -> as the kernel of this device wants it."""
    if nibbles.is_cuda:
        pairs = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).to(torch.uint8)
        return torch._convert_weight_to_int4pack(pairs.contiguous(), inner_tiles(nibbles.shape[1]))
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.to(torch.int32).contiguous(), 1)
    return packed


def unpack(packed: Tensor, width: int, first: int, last: int) -> Tensor:
    """Rows of tiles `first` to `last` of a packed weight -> [out, in] in 0..15."""
    height, deep, places = layout(packed.device.type, width)
    tiles = packed.view(torch.uint8).view(-1, width // deep, height * deep // 2)[first:last]
    nibbles = torch.stack([tiles & 15, tiles >> 4], -1).flatten(2)[:, :, places]
    return nibbles.view(-1, width // deep, height, deep).transpose(1, 2).reshape(-1, width)


def inner_tiles(width: int) -> int:
    return next(tiles for tiles in (8, 4, 2) if width % (16 * tiles) == 0)


@lru_cache
def layout(device: str, width: int) -> tuple[int, int, Tensor]:
    """Outputs and inputs of one tile, and where in its nibbles each weight is, row by row."""
    deep = 16 * inner_tiles(width) if device == "cuda" else 1
    height = 8 if device == "cuda" else cpu_tile()
    number = torch.arange(height * deep, device=device).view(height, deep).repeat(1, 32 if deep == 1 else 1)
    there = torch.zeros(height * deep, dtype=torch.int64, device=device)
    for digit in range(3):  # a nibble holds one hexadecimal digit of the number
        flat = pack((number >> 4 * digit) & 15).view(torch.uint8).flatten()[: height * deep // 2]
        there += torch.stack([flat & 15, flat >> 4], -1).flatten().long() << 4 * digit
    return height, deep, torch.argsort(there)


@lru_cache
def cpu_tile() -> int:
    """How many outputs this processor's kernel packs together: the first repeats once all of them came."""
    row = torch.arange(128).unsqueeze(1).expand(128, 32)
    low, high = (pack((row >> shift) & 15).flatten() for shift in (0, 4))
    first = (low & 15).long() | (high & 15).long() << 4
    return 2 * int((first == first[0]).nonzero()[1])


def fits(weight: Tensor, device: str) -> bool:
    """Whether the kernel can take such a weight at all."""
    height = 8 if device == "cuda" else cpu_tile()
    return weight.shape[0] % height == 0 and any(weight.shape[1] % group == 0 for group in GROUPS)


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


def round_linears(model: nn.Module, *, device: torch.device | str) -> int:
    """Round the language model's layers in place, one by one onto `device`; how many were.

    Embeddings, head and vision tower stay as they are, and what does not fit the kernel. The rest of
    the model is moved by the caller.
    """
    device = torch.device(device)
    chosen = [(name, linear) for name, linear in linears(model) if fits(linear.weight, device.type)]
    for name, linear in chosen:
        model.set_submodule(name, rounded(linear, device=device))
    return len(chosen)


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Those of the language model's layers, by name."""
    named = ((name, module) for name, module in model.named_modules() if LAYERS in f".{name}")
    return [(name, module) for name, module in named if isinstance(module, nn.Linear)]


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
        dense = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        dense.weight, dense.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return dense


def awq_nibbles(words: Tensor) -> Tensor:
    """[rows, words] of int32 -> [rows, 8 * words] in 0..15, in the order of the weights."""
    shifts = torch.tensor([4 * place for place in AWQ_ORDER], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(1)


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
    if quantize and (method or hasattr(config.text_config, "num_experts")):
        what = f"is quantised already, by {method}" if method else "keeps its weights in experts, which are not rounded"
        raise JobError(f"model.quantize: {folder} {what}; remove the key")
    if method == "awq":
        return load_awq(model_class, folder, device=device, **how)
    how["dtype"] = DTYPE if quantize and dtype == "auto" else dtype
    model = whole(model_class, folder, **how)
    if quantize:
        round_linears(model, device=device)
    return model


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
        for name, linear in linears(self):
            if not any(part in name for part in skip):
                self.set_submodule(name, AwqLinear(linear, group))

    # transformers finds how to rename a checkpoint's weights by the class's name and module
    same = {"__init__": with_empty_layers, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), same)


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
