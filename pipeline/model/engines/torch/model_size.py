"""Computes a model's size in parameters and bytes from its config, without loading a weight or importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.model.engines.torch import memory
from pipeline.model.engines.torch.memory import ROWS_PER_SLOT
from pipeline.model.engines.torch.shard import get_head_dim
from pipeline.model.engines.torch.torch_settings import DEFAULT_PREFILL_TOKENS
from pipeline.model.engines.torch.weight_counts import WeightCounts, count_weights

INT4_WEIGHT_BYTES = 0.5 + 2.5 / 128  # with the scale and zero point of its group


@dataclass(frozen=True, slots=True)
class ModelSize:
    vision_parameters: int
    text_parameters: int
    active_parameters: int  # of the text model: those that one token uses
    weights_bytes: int
    text_bytes: int  # the part of them that a decode step reads
    token_bytes: int  # KV cache of one token
    step_bytes: int  # activations of the largest steps, and features that are kept, on a single GPU
    patches_per_token: int
    state_bytes: int = 0  # of the linear-attention layers, for one row of any length; the engine keeps it twice
    feature_bytes: int = 0  # those that each GPU keeps for every other one
    slot_step_bytes: int = 0  # by which `step_bytes` is less for each slot fewer

    def without_text(self) -> ModelSize:
        """What a job needs that computes vectors from the vision tower alone."""
        weights_bytes = self.weights_bytes - self.text_bytes
        return replace(self, text_parameters=0, active_parameters=0, text_bytes=0, weights_bytes=weights_bytes)

    def compute_row_bytes(self, tokens: float) -> float:
        """KV cache and state of a row: what it takes, and what a step reads and writes of it."""
        return tokens * self.token_bytes + 2 * self.state_bytes

    def choose_sizes(self, gpu_memory_bytes: float, gpu_count: int = 1) -> tuple[int, int]:
        """The engine's slots, and the tokens that a KV cache without states could hold beside weights and steps.

        The latter are negative where the model does not fit.
        """
        free = memory.CUDA_MEMORY_FRACTION * gpu_memory_bytes - self.weights_bytes / gpu_count
        free -= (gpu_count - 1) * self.feature_bytes
        slots = memory.DEFAULT_SLOTS_BY_DEVICE["cuda"]
        if self.state_bytes:
            state_bytes = ROWS_PER_SLOT * self.state_bytes / gpu_count
            slots = memory.choose_state_slots(free, state_bytes, slots, estimate_step=self.estimate_step)
        return slots, int((free - self.estimate_step(slots)) * gpu_count // self.token_bytes)

    def estimate_step(self, slots: int) -> int:
        return self.step_bytes - (memory.DEFAULT_SLOTS_BY_DEVICE["cuda"] - slots) * self.slot_step_bytes


def measure_model(config: Mapping[str, Any], *, dtype: str = "auto", quantize: str | None = None) -> ModelSize:
    config = dict(config)
    is_int4 = quantize == "int4" or config.pop("quantization_config", None) is not None
    counts = count_weights(config, dtype) or count_on_meta_device(config, dtype)
    text_config, vision_config, item_bytes = counts.text_config, counts.vision_config, counts.item_bytes
    active_share = getattr(text_config, "num_experts_per_tok", 1) / getattr(text_config, "num_experts", 1)
    key_width = text_config.num_key_value_heads * get_head_dim(text_config)
    linear_layers = (getattr(text_config, "layer_types", None) or []).count("linear_attention")
    most_slots, patches = memory.DEFAULT_SLOTS_BY_DEVICE["cuda"], memory.DEFAULT_PATCHES_BY_DEVICE["cuda"]
    estimate_step = partial(
        memory.estimate_step_bytes,
        text_config,
        vision_config,
        item_bytes,
        patches=patches,
        prefill_tokens=DEFAULT_PREFILL_TOKENS,
    )
    layer_item_bytes = INT4_WEIGHT_BYTES if is_int4 else item_bytes
    text_bytes = int((counts.text - counts.vocabulary) * layer_item_bytes) + counts.vocabulary * item_bytes
    return ModelSize(
        vision_parameters=counts.vision,
        text_parameters=counts.text,
        active_parameters=int(counts.text - counts.experts * (1 - active_share)) if counts.experts else counts.text,
        weights_bytes=counts.vision * item_bytes + text_bytes,
        text_bytes=text_bytes,
        token_bytes=2 * (text_config.num_hidden_layers - linear_layers) * key_width * item_bytes,
        step_bytes=estimate_step(slots=most_slots),
        slot_step_bytes=(estimate_step(slots=most_slots) - estimate_step(slots=0)) // most_slots,
        feature_bytes=memory.estimate_feature_bytes(text_config, vision_config, item_bytes, patches=patches),
        patches_per_token=vision_config.spatial_merge_size**2,
        state_bytes=linear_layers * compute_layer_state_bytes(text_config, item_bytes) if linear_layers else 0,
    )


def count_on_meta_device(config: Mapping[str, Any], dtype: str) -> WeightCounts:
    from pipeline.model.engines.torch.meta_model import count_meta_weights  # it imports torch, which takes seconds

    return count_meta_weights(config, dtype)


def compute_layer_state_bytes(text_config: Any, item_bytes: int) -> int:
    """What a Gated DeltaNet layer keeps for a row: a matrix per head in float32, and inputs of its convolution."""
    key_width = text_config.linear_num_key_heads * text_config.linear_key_head_dim
    value_width = text_config.linear_num_value_heads * text_config.linear_value_head_dim
    convolution = (2 * key_width + value_width) * text_config.linear_conv_kernel_dim * item_bytes
    return int(4 * value_width * text_config.linear_key_head_dim + convolution)
