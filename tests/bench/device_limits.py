"""Measures what a device can do at best, and the share of it that the engine reaches.

Prefill is compared with the device's matrix products (model FLOPs utilisation). Decoding is compared with its memory
copies, because every step reads all weights and all keys and values.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.types import Request, Sampling


def synchronize(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_fastest(function, device: torch.device, *, times: int = 10) -> float:
    """The seconds of the fastest repetition."""
    durations = []
    for _ in range(times):
        start = synchronize(device)
        function()
        durations.append(synchronize(device) - start)
    return min(durations)


def measure_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / measure_fastest(lambda: left @ right, device)


def measure_copy_bandwidth(device: torch.device) -> float:
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / measure_fastest(lambda: target.copy_(source), device)


def build_text_requests(engine: TorchEngine, count: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    ids = np.random.default_rng(0).integers(0, 200, (count, prompt_tokens), dtype=np.int32)
    positions = np.tile(np.arange(prompt_tokens, dtype=np.int32), (3, 1))
    return [Request(str(row), (), ids[row], positions, sampling=Sampling(new_tokens)) for row in range(count)]


def measure_shares(engine: TorchEngine, *, prompt_tokens: int = 1024, new_tokens: int = 64) -> dict[str, float]:
    loaded, rows = engine.step_runner.loaded, engine.sizes.slots
    config = loaded.language_model.config
    layers = sum(part.numel() for part in loaded.language_model.layers.parameters())
    for request in build_text_requests(engine, rows, prompt_tokens, new_tokens):
        engine.submit(request)
    start = synchronize(loaded.device)
    while engine.scheduler.waiting or any(row.computed_tokens < row.prompt_tokens for row in engine.scheduler.running):
        engine.step()
    prefill_seconds = synchronize(loaded.device) - start
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * loaded.cache_shape[2] * prompt_tokens / 2
    flops = rows * prompt_tokens * (2 * layers + attention) / prefill_seconds
    engine.step()  # the first step captures the graph
    bytes_read, start, steps = 0.0, synchronize(loaded.device), 0
    weights_bytes = (layers + loaded.lm_head.weight.numel()) * loaded.dtype.itemsize
    token_bytes = 2 * np.prod(loaded.cache_shape) * loaded.dtype.itemsize
    while len(engine.scheduler.running) == rows and steps < new_tokens // 2:
        bytes_read += weights_bytes + token_bytes * sum(row.computed_tokens for row in engine.scheduler.running)
        engine.step()
        steps += 1
    decode_seconds = synchronize(loaded.device) - start
    while engine.scheduler.running:
        engine.step()
    return {
        "prefill_mfu": flops / measure_matmul_flops(loaded.device, loaded.dtype),
        "decode_bandwidth_share": bytes_read / decode_seconds / measure_copy_bandwidth(loaded.device),
        "decode_step_ms": 1000 * decode_seconds / steps,
        "prefill_tokens_per_s": rows * prompt_tokens / prefill_seconds,
    }
