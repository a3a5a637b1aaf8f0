"""Estimates hours and money for a load of tokens on GPUs that people rent.

The time of prompts follows from a card's peak and that of answers from its bandwidth, one after the other. How much of
both an engine reaches is taken from measured rows like these (`measured.py`). Where there are none it is a range: in
prefill the one that published runs span, in decoding an assumed one. Prices are typical ones on demand, in USD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inspect.plan.measured import MeasuredSpeed, find_nearest
from pipeline.model.engines.torch.model_size import ModelSize

GIB = 2**30
PEAK_SHARES = (0.15, 0.5)  # least and most that published runs reach in prefill
BANDWIDTH_SHARES = (0.3, 0.6)  # least and most in decoding, assumed


@dataclass(frozen=True, slots=True)
class Gpu:
    memory_gib: float
    tflops: float  # dense, bf16
    bandwidth_gb_s: float
    price_per_hour: float  # USD


GPUS = {
    "L4": Gpu(22.5, 121, 300, 0.8),
    "A10G": Gpu(22.5, 70, 600, 1.2),
    "L40S": Gpu(44.5, 362, 864, 1.9),
    "A100-40GB": Gpu(39.5, 312, 1555, 2.7),
    "A100-80GB": Gpu(79.2, 312, 2039, 3.4),
    "H100": Gpu(79.2, 989, 3350, 4.0),
    "H200": Gpu(139.8, 989, 4800, 4.8),
    "B200": Gpu(178.3, 2250, 8000, 6.5),
}


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """Tokens of all rows. The field names are keys of `plan --json`."""

    rows: float
    vision: float
    prompt: float  # vision tokens included
    output: float
    longest: int  # of one row, with its answer
    copied: float = 0.0  # of the prompts, what is computed for one row and copied to others
    copied_vision: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuEstimate:
    """A load on one kind of GPU. The field names are keys of `plan --json`."""

    gpu: str
    gpus: int  # for one replica
    kv_tokens: int
    rows_at_once: int
    least_gpu_hours: float | None  # None if the model does not fit
    gpu_hours: float | None  # the most; equal to the least if it follows from a measurement
    least_cost: float | None
    cost: float | None
    measured: bool


def estimate_gpu(
    gpu_name: str,
    load: TokenLoad,
    model: ModelSize,
    *,
    gpu_count: int = 1,
    price_per_hour: float | None = None,
    speeds: Sequence[MeasuredSpeed] = (),
) -> GpuEstimate:
    """`speeds` are those of the job's engine and family, on any card."""
    gpu = GPUS[gpu_name]
    slots, kv_tokens = model.choose_sizes(gpu.memory_gib * GIB, gpu_count)
    kv_tokens = max(kv_tokens, 0)
    cache_bytes = kv_tokens * model.token_bytes
    if cache_bytes < model.compute_row_bytes(load.longest) or not load.rows:
        return GpuEstimate(gpu_name, gpu_count, kv_tokens, 0, None, None, None, None, False)
    row_bytes = model.compute_row_bytes((load.prompt + load.output) / load.rows)
    rows_at_once = max(1, min(slots, int(cache_bytes / row_bytes), int(load.rows)))
    prefill_s, decode_s = compute_ideal_seconds(gpu, load, model, rows_at_once)
    speed = None
    if gpu_count == 1:
        on_card = [speed for speed in speeds if speed.is_on(gpu_name, gpu.memory_gib)]
        row_tokens = {"prompt_tokens": load.prompt / load.rows, "output_tokens": load.output / load.rows}
        speed = find_nearest(on_card, model, **row_tokens)
    if speed:
        least = most = (prefill_s + decode_s) / compute_efficiency(speed, gpu) / 3600  # of one GPU
    else:
        most, least = (
            (prefill_s / peak + decode_s / bandwidth) / 3600
            for peak, bandwidth in zip(PEAK_SHARES, BANDWIDTH_SHARES, strict=True)
        )
    price = gpu.price_per_hour if price_per_hour is None else price_per_hour
    costs = least * price, most * price
    return GpuEstimate(gpu_name, gpu_count, kv_tokens, rows_at_once, least, most, *costs, speed is not None)


def compute_ideal_seconds(gpu: Gpu, load: TokenLoad, model: ModelSize, rows_at_once: int) -> tuple[float, float]:
    """Of prefill at the whole peak, and of decoding at the whole bandwidth."""
    encoded, computed = load.vision - load.copied_vision, load.prompt - load.copied
    vision_operations = model.vision_parameters * encoded * model.patches_per_token
    prefill_operations = 2.0 * (model.active_parameters * computed + vision_operations)
    row_bytes = model.compute_row_bytes((load.prompt + load.output) / load.rows)
    step_bytes = model.text_bytes + rows_at_once * row_bytes
    decode_bytes = step_bytes * load.output / rows_at_once
    return prefill_operations / (gpu.tflops * 1e12), decode_bytes / (gpu.bandwidth_gb_s * 1e9)


def compute_efficiency(speed: MeasuredSpeed, gpu: Gpu) -> float:
    """The ideal time of the measured rows over the time that they took."""
    load = TokenLoad(
        rows=speed.rows,
        vision=speed.rows * speed.vision_tokens,
        prompt=speed.rows * speed.prompt_tokens,
        output=speed.rows * speed.output_tokens,
        longest=math.ceil(speed.prompt_tokens + speed.output_tokens),
    )
    return sum(compute_ideal_seconds(gpu, load, speed.model, speed.rows_at_once)) * speed.rows_per_s / speed.rows
