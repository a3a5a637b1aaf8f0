"""Estimates hours and money for a load of tokens on GPUs that people rent.

The estimate is a roofline: prompts are computed at half of a card's peak, answers move bytes at 60 % of its bandwidth,
one after the other. Shares that were measured with this engine go into `MEASURED_SHARES` and replace these two. Prices
are typical ones on demand, in USD.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.engines.torch.memory import DEFAULT_SLOTS_BY_DEVICE
from pipeline.model.engines.torch.model_size import ModelSize

GIB = 2**30
PEAK_SHARE, BANDWIDTH_SHARE = 0.5, 0.6
MEASURED_SHARES: dict[str, tuple[float, float]] = {}  # by GPU: peak and bandwidth


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


@dataclass(frozen=True, slots=True)
class GpuEstimate:
    """A load on one kind of GPU. The field names are keys of `plan --json`."""

    gpu: str
    gpus: int  # for one replica
    kv_tokens: int
    rows_at_once: int
    gpu_hours: float | None  # None if the model does not fit
    cost: float | None
    measured: bool


def estimate_gpu(
    gpu_name: str, load: TokenLoad, model: ModelSize, *, gpu_count: int = 1, price_per_hour: float | None = None
) -> GpuEstimate:
    gpu = GPUS[gpu_name]
    peak, bandwidth = MEASURED_SHARES.get(gpu_name, (PEAK_SHARE, BANDWIDTH_SHARE))
    kv_tokens = max(model.count_kv_tokens(gpu.memory_gib * GIB, gpu_count), 0)
    cache_bytes = kv_tokens * model.token_bytes
    if cache_bytes < model.compute_row_bytes(load.longest) or not load.rows:
        return GpuEstimate(gpu_name, gpu_count, kv_tokens, 0, None, None, gpu_name in MEASURED_SHARES)
    row_bytes = model.compute_row_bytes((load.prompt + load.output) / load.rows)
    rows_at_once = max(1, min(DEFAULT_SLOTS_BY_DEVICE["cuda"], int(cache_bytes / row_bytes), int(load.rows)))
    vision_operations = model.vision_parameters * load.vision * model.patches_per_token
    prefill_operations = 2.0 * (model.active_parameters * load.prompt + vision_operations)
    step_bytes = model.text_bytes + rows_at_once * row_bytes
    decode_bytes = step_bytes * load.output / rows_at_once
    prefill_s = prefill_operations / (gpu.tflops * 1e12 * peak)
    decode_s = decode_bytes / (gpu.bandwidth_gb_s * 1e9 * bandwidth)
    hours = (prefill_s + decode_s) / 3600  # of one GPU
    price = gpu.price_per_hour if price_per_hour is None else price_per_hour
    is_measured = gpu_name in MEASURED_SHARES
    return GpuEstimate(gpu_name, gpu_count, kv_tokens, rows_at_once, hours, hours * price, is_measured)
