"""Writes checkpoints with four-bit weights as AutoAWQ saves them."""

import json

import torch
from safetensors.torch import load_file, save_file


def quantize_reference(linear, group=128):
    """Nibble, scale and zero of each weight, by the definition of AWQ's integer zeros."""
    weight = linear.weight.detach().float().view(linear.out_features, -1, group)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    scale = (high - low) / 15
    zero = (-low / scale).round().clamp(0, 15)
    nibble = (weight / scale + zero).round().clamp(0, 15)
    return nibble.view_as(linear.weight).int(), scale.squeeze(-1), zero.squeeze(-1).int()


def pack_awq(rows):
    """[rows, out] of 0..15 becomes int32 words of eight columns, in AutoAWQ's order 0 2 4 6 1 3 5 7."""
    words = torch.zeros(rows.shape[0], rows.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        words |= rows[:, column::8].long() << 4 * place
    return torch.where(words >= 2**31, words - 2**32, words).int()


def write_awq_checkpoint(folder, dense):
    """Rewrites a dense checkpoint as AutoAWQ saves one. Returns the rounded weights, dense."""
    tensors, rounded = {}, {}
    for name, tensor in load_file(dense / "model.safetensors").items():
        if "visual" in name or tensor.dim() != 2 or ".layers." not in name:
            tensors[name] = tensor.half()
            rounded[name] = tensor.half().float()
            continue
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        linear.weight.data = tensor.float()
        nibble, scale, zero = quantize_reference(linear)
        scale = scale.half()
        tensors[name.replace("weight", "qweight")] = pack_awq(nibble.T.contiguous())
        tensors[name.replace("weight", "qzeros")] = pack_awq(zero.T.contiguous())
        tensors[name.replace("weight", "scales")] = scale.T.contiguous()
        rounded[name] = (nibble - zero.repeat_interleave(128, 1)) * scale.float().repeat_interleave(128, 1)
    for file in dense.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    said = json.loads((dense / "config.json").read_text())
    said["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": ["visual"],
    }
    (folder / "config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return rounded
