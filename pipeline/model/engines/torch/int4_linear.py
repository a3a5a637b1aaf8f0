"""A linear layer of four-bit weights.

    weight = (nibble - 8) * scale + zero            one scale and zero for `group` inputs of an output

Few rows go through torch's own int4 kernel, which reads a quarter of the memory. Many rows go through a dense copy
made on the fly, because a dense matrix product then costs less. The kernel takes bfloat16 only; other types always use
the dense copy.

The kernel's layout of nibbles depends on device and processor, and torch can pack but not unpack. So the layout is
learned once, from how a numbered tile is packed, and weights are kept in packed form only.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.engines.torch.shard import find_group_size

KERNEL_DTYPE = torch.bfloat16  # of activations that the kernel takes
MAX_KERNEL_ROWS = {"cpu": 1024, "cuda": 64}  # above it a dense copy is faster: measured on CPU, estimated on CUDA
GROUP_SIZES = (128, 64, 32)
MAX_DENSE_WEIGHTS = 2**24  # made dense at a time; bounds the memory beside the result


class Int4Linear(nn.Module):
    """A linear layer, packed for the device on which it was made; it cannot be moved."""

    packed: Tensor
    scales_zeros: Tensor
    bias: Tensor | None

    def __init__(self, nibbles: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None):
        """`nibbles` [out, in] in 0..15; `scales` and `zeros` [out, in / group] in the dtype to compute in."""
        super().__init__()
        self.out_features, self.in_features = nibbles.shape
        self.group_size = self.in_features // scales.shape[1]
        self.register_buffer("packed", pack_nibbles(nibbles))
        self.register_buffer("scales_zeros", torch.stack([scales, zeros], -1).transpose(0, 1).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(scales.dtype))

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, self.in_features)
        if flat.shape[0] <= MAX_KERNEL_ROWS[flat.device.type] and flat.dtype == KERNEL_DTYPE:
            kernel = torch._weight_int4pack_mm if flat.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
            out = kernel(flat, self.packed, self.group_size, self.scales_zeros)
            out = out if self.bias is None else out + self.bias
        else:
            out = functional.linear(flat, self.dequantize(flat.dtype), self.bias)
        return out.reshape(*rows.shape[:-1], self.out_features)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight as [out, in]."""
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.packed.device)
        scales, zeros = self.scales_zeros.to(dtype).transpose(0, 1).unsqueeze(2).unbind(-1)
        height, _, _ = learn_tile_layout(weight.device, self.in_features)
        rows_at_once = max(height, MAX_DENSE_WEIGHTS // self.in_features // height * height)
        for start in range(0, self.out_features, rows_at_once):
            end = start + rows_at_once
            nibbles = unpack_nibbles(self.packed, self.in_features, start // height, end // height).to(dtype)
            groups = nibbles.view(-1, self.in_features // self.group_size, self.group_size)
            weight[start:end] = torch.addcmul(zeros[start:end], groups.sub_(8), scales[start:end]).flatten(1)
        return weight


def round_to_nibbles(weight: Tensor, group_size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Round to the nearest of sixteen values that divide each group's range evenly: nibbles, scales and zeros."""
    group_size = group_size or find_group_size(weight.shape[1], GROUP_SIZES)
    groups = weight.float().view(len(weight), -1, group_size)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-6)
    nibbles = ((groups - low) / scale).round().clamp(0, 15).to(torch.uint8).view(weight.shape)
    scales, zeros = (value.squeeze(-1).to(weight.dtype) for value in (scale, low + 8 * scale))
    return nibbles, scales, zeros


def pack_nibbles(nibbles: Tensor) -> Tensor:
    """[out, in] in 0..15 becomes the layout of this device's kernel."""
    if nibbles.is_cuda:
        pairs = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).to(torch.uint8)
        return torch._convert_weight_to_int4pack(pairs.contiguous(), choose_inner_tiles(nibbles.shape[1]))
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.to(torch.int32).contiguous(), 1)
    return packed


def unpack_nibbles(packed: Tensor, in_features: int, first_tile: int, end_tile: int) -> Tensor:
    """A range of rows of tiles, as [out, in] in 0..15."""
    height, deep, places = learn_tile_layout(packed.device, in_features)
    tiles = packed.view(torch.uint8).view(-1, in_features // deep, height * deep // 2)[first_tile:end_tile]
    nibbles = torch.stack([tiles & 15, tiles >> 4], -1).flatten(2)[:, :, places]
    return nibbles.view(-1, in_features // deep, height, deep).transpose(1, 2).reshape(-1, in_features)


def choose_inner_tiles(in_features: int) -> int:
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)


@lru_cache
def learn_tile_layout(device: torch.device, in_features: int) -> tuple[int, int, Tensor]:
    """Outputs and inputs of one tile, and the index among its nibbles of each weight, row by row."""
    deep = 16 * choose_inner_tiles(in_features) if device.type == "cuda" else 1
    height = 8 if device.type == "cuda" else measure_cpu_tile()
    numbers = torch.arange(height * deep, device=device).view(height, deep).repeat(1, 32 if deep == 1 else 1)
    packed_numbers = torch.zeros(height * deep, dtype=torch.int64, device=device)
    for digit in range(3):  # a nibble holds one hexadecimal digit of a number
        packed = pack_nibbles((numbers >> 4 * digit) & 15).view(torch.uint8).flatten()[: height * deep // 2]
        packed_numbers += torch.stack([packed & 15, packed >> 4], -1).flatten().long() << 4 * digit
    return height, deep, torch.argsort(packed_numbers)


@lru_cache
def measure_cpu_tile() -> int:
    """The number of outputs that this processor's kernel packs together: the first one repeats after all of them."""
    output_numbers = torch.arange(128).unsqueeze(1).expand(128, 32)
    low, high = (pack_nibbles((output_numbers >> shift) & 15).flatten() for shift in (0, 4))
    first = (low & 15).long() | (high & 15).long() << 4
    return 2 * int((first == first[0]).nonzero()[1])


def can_use_kernel(weight: Tensor, device_type: str) -> bool:
    height = 8 if device_type == "cuda" else measure_cpu_tile()
    return weight.shape[0] % height == 0 and any(weight.shape[1] % group == 0 for group in GROUP_SIZES)
