"""Tokens, a model's extent -> hours and money on GPUs people rent.

A roofline: arithmetic of reading prompts at half of a card's peak, bytes moved by writing answers at 60 % of its
bandwidth, one after the other. This engine has not been measured on any of them yet; a figure that is measured goes
into `MEASURED` and takes the place of the shares. Prices are typical ones on demand, in USD; yours differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.engines.torch.memory import DEFAULT_SLOTS_BY_DEVICE
from pipeline.model.engines.torch.model_size import ModelSize

GIB = 2**30
PEAK_SHARE, BANDWIDTH_SHARE = 0.5, 0.6
MEASURED_SHARES: dict[str, tuple[float, float]] = {}  # by GPU: the two shares that this engine reached


@dataclass(frozen=True, slots=True)
class Gpu:
    memory_gib: float
    tflops: float  # dense, bf16
    bandwidth_gb_s: float
    price_per_hour: float  # USD an hour


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
    """What is to be done, in tokens."""

    rows: float
    vision: float
    prompt: float  # vision tokens included
    output: float
    longest: int  # of one row, answer included


@dataclass(frozen=True, slots=True)
class GpuEstimate:
    """One kind of GPU for one load."""

    gpu: str
    gpus: int  # of one replica
    kv_tokens: int
    rows_at_once: int
    gpu_hours: float | None  # None: it does not fit
    cost: float | None
    measured: bool


def estimate_gpu(
    gpu_name: str, load: TokenLoad, model: ModelSize, *, gpu_count: int = 1, price_per_hour: float | None = None
) -> GpuEstimate:
    gpu = GPUS[gpu_name]
    peak, bandwidth = MEASURED_SHARES.get(gpu_name, (PEAK_SHARE, BANDWIDTH_SHARE))
    kv_tokens = max(model.count_kv_tokens(gpu.memory_gib * GIB, gpu_count), 0)
    if kv_tokens < load.longest or not load.rows:
        return GpuEstimate(gpu_name, gpu_count, kv_tokens, 0, None, None, gpu_name in MEASURED_SHARES)
    row_tokens = (load.prompt + load.output) / load.rows
    at_once = max(1, min(DEFAULT_SLOTS_BY_DEVICE["cuda"], int(kv_tokens / row_tokens), int(load.rows)))
    reading = 2.0 * (
        model.active_parameters * load.prompt + model.vision_parameters * load.vision * model.patches_per_token
    )
    step_bytes = model.text_bytes + at_once * row_tokens * model.token_bytes
    writing = step_bytes * load.output / at_once
    seconds = reading / (gpu.tflops * 1e12 * peak) + writing / (
        gpu.bandwidth_gb_s * 1e9 * bandwidth
    )  # of one GPU's work
    hours = seconds / 3600
    return GpuEstimate(
        gpu_name,
        gpu_count,
        kv_tokens,
        at_once,
        hours,
        hours * (gpu.price_per_hour if price_per_hour is None else price_per_hour),
        gpu_name in MEASURED_SHARES,
    )
