"""Step `quantized`: the int4 kernel, AWQ's layout and fp8 weights, each against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import hf_models
from pipeline.model.engines.torch import int4, int4_linear
from pipeline.model.engines.torch.model_loader import build_model
from pipeline.model.family_loader import load_config
from tests.bench import device_limits
from tests.gpu.bench import Bench
from tests.gpu.smoke import relative_error
from tests.model.awq_checkpoint import write_awq_checkpoint
from tests.model.fp8_checkpoint import write_fp8_checkpoint

SHAPES = [(192, 256), (512, 3584)]  # outputs, inputs
ROWS = (1, 3, 60)
CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "initializer_range": 0.05,  # larger random weights amplify rounding beyond what trained ones do
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}
TIMED_SHAPES = {"3584 x 18944": (18944, 3584), "4096 x 4096": (4096, 4096)}
TIMED_ROWS = (1, 16, 64, 128)
KERNEL_ERROR, MODEL_ERROR = 0.01, 0.05


def run(bench: Bench) -> None:
    check_layer(bench)
    dense = write_random_checkpoint(bench.folder / "dense", "qwen2_5_vl", text_config=CONFIG)
    (bench.folder / "awq").mkdir()
    check_checkpoint(bench, "AWQ", dense, bench.folder / "awq", write_awq_checkpoint(bench.folder / "awq", dense))
    check_checkpoint(bench, "fp8", dense, bench.folder / "fp8", write_fp8_checkpoint(bench.folder / "fp8", dense))
    if bench.is_cuda:
        time_kernel(bench)


def check_layer(bench: Bench) -> None:
    for outputs, inputs in SHAPES[: 1 if bench.is_toy else None]:
        torch.manual_seed(0)
        linear = torch.nn.Linear(inputs, outputs).bfloat16()
        layer = int4.quantize_linear(linear, device=bench.device)
        nibbles, scales, zeros = int4_linear.round_to_nibbles(linear.weight.detach())
        groups = nibbles.float().view(outputs, -1, layer.group_size)
        expected = ((groups - 8) * scales.float()[..., None] + zeros.float()[..., None]).flatten(1)
        name = f"int4 {inputs} -> {outputs}"
        error = relative_error(layer.dequantize(torch.float32).cpu(), expected)
        bench.report.check_at_most(f"{name}: unpacked weights", error, 1e-6)
        steps = scales.float().repeat_interleave(layer.group_size, 1)
        moved = ((expected - linear.weight.detach().float()).abs() / steps).max().item()
        bench.report.check_at_most(f"{name}: rounding, in steps", moved, 0.75)  # scale and zero are rounded, too
        for rows in ROWS:
            values = torch.randn(rows, inputs).bfloat16()
            ours = layer(values.to(bench.device)).float().cpu()
            dense = functional.linear(values.float(), expected, linear.bias.detach().float())
            bench.report.check_at_most(f"{name}: kernel, {rows} rows", relative_error(ours, dense), KERNEL_ERROR)


@torch.inference_mode()
def check_checkpoint(bench: Bench, name: str, dense: Path, folder: Path, rounded: dict[str, Tensor]) -> None:
    """The loaded model against transformers' own with the weights that the files stand for."""
    reference = hf_models.get_model_class("qwen2_5_vl").from_pretrained(dense, dtype=torch.float32).eval()
    before = compute_logits(reference)
    own = dict(reference.named_parameters())
    for key, weight in rounded.items():
        own[next(known for known in own if known.endswith(key.removeprefix("model.")))].data.copy_(weight)
    expected = compute_logits(reference)
    model = build_model(folder, load_config(folder), dtype="bfloat16", device=bench.device)
    error = relative_error(compute_logits(model), expected)
    bench.report.check_at_most(f"{name} checkpoint: logits in bfloat16", error, MODEL_ERROR)
    exact = build_model(folder, load_config(folder), dtype="float32", device=bench.device)
    error = relative_error(compute_logits(exact), expected)
    bench.report.check_at_most(f"{name} checkpoint: logits in float32", error, 2e-4)
    bench.report.check(f"{name} checkpoint: rounding shows", relative_error(expected, before) > 0.01)


def compute_logits(model: Any) -> Tensor:
    ids = torch.arange(40).unsqueeze(0) * 7 % 250
    logits: Tensor = model(input_ids=ids.to(model.device)).logits.float()[0].cpu()
    return logits


def time_kernel(bench: Bench) -> None:
    """Says from how many rows on a dense copy is faster: int4_linear.MAX_KERNEL_ROWS was estimated."""
    for name, (outputs, inputs) in TIMED_SHAPES.items():
        linear = torch.nn.Linear(inputs, outputs, bias=False, device=bench.device, dtype=torch.bfloat16)
        layer = int4.quantize_linear(linear, device=bench.device)
        for rows in TIMED_ROWS:
            values = torch.randn(rows, inputs, device=bench.device, dtype=torch.bfloat16)
            ways = {
                "kernel": lambda values=values, layer=layer: torch._weight_int4pack_mm(
                    values, layer.packed, layer.group_size, layer.scales_zeros
                ),
                "dense copy": lambda values=values, layer=layer: functional.linear(
                    values, layer.dequantize(torch.bfloat16)
                ),
                "bf16": lambda values=values, linear=linear: linear(values),
            }
            for way, compute in ways.items():
                compute()
                seconds = device_limits.measure_fastest(compute, bench.device)
                bench.report.figure(f"int4 {name}, {rows} rows, {way}, us", 1e6 * seconds)
