"""A checkpoint's config -> how large its model is, in parameters and bytes, without loading a weight.

The model is built on torch's `meta` device, where tensors have shapes and no memory, so the counts are those of the
real classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.model import hf_models
from pipeline.model.engines.torch.loaded_model import LoadedModel
from pipeline.model.engines.torch.memory import (
    CUDA_MEMORY_FRACTION,
    DEFAULT_PATCHES,
    DEFAULT_PREFILL_TOKENS,
    DEFAULT_SLOTS,
    estimate_step_bytes,
)
from pipeline.model.engines.torch.shard import get_head_dim

INT4_WEIGHT_BYTES = 0.5 + 2.5 / 128  # of a weight, with scale and zero point of its group


@dataclass(frozen=True, slots=True)
class ModelSize:
    vision_parameters: int
    text_parameters: int
    active_parameters: int  # of the text model, for one token
    weights_bytes: int
    text_bytes: int  # of them, what one decoding step reads
    token_bytes: int  # of key-value cache
    step_bytes: int  # the largest step's own
    patches_per_token: int

    def count_kv_tokens(self, gpu_memory_bytes: float, gpu_count: int = 1) -> int:
        """Tokens of cache beside weights and a step, on so many GPUs of that memory; below zero it does not fit."""
        free = CUDA_MEMORY_FRACTION * gpu_memory_bytes - self.weights_bytes / gpu_count - self.step_bytes
        return int(free * gpu_count // self.token_bytes)


def measure_model(config: Mapping[str, Any], *, dtype: str = "auto", quantize: str | None = None) -> ModelSize:
    said = dict(config)
    int4 = quantize == "int4" or said.pop("quantization_config", None) is not None
    made = hf_models.get_config_class(said["model_type"]).from_dict(said)
    kind = made.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model = hf_models.get_model_class(said["model_type"])._from_config(made, dtype=kind or torch.bfloat16)
    tower, text = model.model.visual, model.config.text_config
    shape = text.num_hidden_layers, text.num_key_value_heads, get_head_dim(text)
    loaded = LoadedModel(tower, model.model.language_model, model.lm_head, frozenset(), shape, text.vocab_size)
    vision = sum(weight.numel() for weight in tower.parameters())
    item = loaded.dtype.itemsize
    counts = {name: weight.numel() for name, weight in model.named_parameters() if ".visual." not in name}
    plain = sum(count for name, count in counts.items() if "embed_tokens" in name or "lm_head" in name)
    inner = sum(counts.values()) - plain
    experts = sum(count for name, count in counts.items() if ".experts." in name)
    used = getattr(text, "num_experts_per_tok", 1) / getattr(text, "num_experts", 1) if experts else 1.0
    text_bytes = int(inner * (INT4_WEIGHT_BYTES if int4 else item)) + plain * item
    return ModelSize(
        vision_parameters=vision,
        text_parameters=sum(counts.values()),
        active_parameters=int(sum(counts.values()) - experts * (1 - used)),
        weights_bytes=vision * item + text_bytes,
        text_bytes=text_bytes,
        token_bytes=2 * math.prod(shape) * item,
        step_bytes=estimate_step_bytes(loaded, DEFAULT_SLOTS["cuda"], DEFAULT_PATCHES["cuda"], DEFAULT_PREFILL_TOKENS),
        patches_per_token=model.config.vision_config.spatial_merge_size**2,
    )
