"""Measures what a device can do at best, and the share of it that the engine reaches.

Prefill is compared with the device's matrix products (model FLOPs utilisation). Decoding is compared with its memory
copies, because every step reads all weights and all keys and values.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np
import torch

from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.types import Request, Sampling

SEEDS = count()


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


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    side = side or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / measure_fastest(lambda: left @ right, device)


def measure_copy_bandwidth(device: torch.device, *, size: int | None = None) -> float:
    size = size or (2**30 if device.type == "cuda" else 2**27)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / measure_fastest(lambda: target.copy_(source), device)


def build_text_requests(engine: TorchEngine, rows: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    """New prompts at each call: what they have in common with earlier ones would be copied, not computed."""
    ids = np.random.default_rng(next(SEEDS)).integers(0, 200, (rows, prompt_tokens), dtype=np.int32)
    positions = np.tile(np.arange(prompt_tokens, dtype=np.int32), (3, 1))
    return [Request(str(row), (), ids[row], positions, sampling=Sampling(new_tokens)) for row in range(rows)]


def measure_shares(engine: TorchEngine, *, prompt_tokens: int = 1024, new_tokens: int = 64) -> dict[str, float]:
    loaded, rows = engine.step_runner.loaded, engine.sizes.slots
    flops, tokens_per_s = measure_prefill(engine, rows=rows, prompt_tokens=prompt_tokens)
    bandwidth, step_seconds = measure_decode(engine, rows=rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return {
        "prefill_mfu": flops / measure_matmul_flops(loaded.device, loaded.dtype),
        "decode_bandwidth_share": bandwidth / measure_copy_bandwidth(loaded.device),
        "decode_step_ms": 1000 * step_seconds,
        "prefill_tokens_per_s": tokens_per_s,
    }


def measure_prefill(engine: TorchEngine, *, rows: int, prompt_tokens: int) -> tuple[float, float]:
    """FLOP/s and tokens/s of prompts without pictures. Answers have one token, so no step decodes."""
    loaded = engine.step_runner.loaded
    config = loaded.language_model.config
    for request in build_text_requests(engine, rows, prompt_tokens, 1):
        engine.submit(request)
    start = synchronize(loaded.device)
    while engine.scheduler.waiting or engine.scheduler.running:
        engine.step()
    seconds = synchronize(loaded.device) - start
    layers, heads, head_dim = loaded.cache_shape[0], config.num_attention_heads, loaded.cache_shape[2]
    attention = 4 * layers * heads * head_dim * prompt_tokens / 2
    tokens = rows * prompt_tokens
    return tokens * (2 * count_active_parameters(loaded.language_model) + attention) / seconds, tokens / seconds


def count_active_parameters(language_model: Any) -> float:
    """Of the layers, those that one token uses."""
    config = language_model.config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    weights = language_model.layers.named_parameters()
    return sum(weight.numel() * (share if ".experts." in name else 1) for name, weight in weights)


def measure_decode(engine: TorchEngine, *, rows: int, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Bytes/s that a step must read, of weights, keys and values, and the seconds of a step."""
    loaded = engine.step_runner.loaded
    for request in build_text_requests(engine, rows, prompt_tokens, new_tokens):
        engine.submit(request)
    while engine.scheduler.waiting or any(row.computed_tokens < row.prompt_tokens for row in engine.scheduler.running):
        engine.step()
    engine.step()  # the first step captures the graph
    layers = sum(part.numel() for part in loaded.language_model.layers.parameters())
    weights_bytes = (layers + loaded.lm_head.weight.numel()) * loaded.dtype.itemsize
    token_bytes = 2 * np.prod(loaded.cache_shape) * loaded.dtype.itemsize
    bytes_read, start, steps = 0.0, synchronize(loaded.device), 0
    while len(engine.scheduler.running) == rows and steps < new_tokens // 2:
        bytes_read += weights_bytes + token_bytes * sum(row.computed_tokens for row in engine.scheduler.running)
        engine.step()
        steps += 1
    seconds = synchronize(loaded.device) - start
    while engine.scheduler.running:
        engine.step()
    return bytes_read / seconds, seconds / steps
