"""Qwen3.5, 3.6 and 3.8, dense and mixture of experts: sizes, prompts and positions of Qwen3-VL, on a hybrid model.

Three of four layers are Gated DeltaNet layers, which keep a state instead of keys and values. The checkpoints think
unless their chat template is told not to, and the template trims the text of every turn.
"""

from __future__ import annotations

from typing import Any

from pipeline.model.families.model_architecture import SHARD_RULES, ModelArchitecture, ShardRule
from pipeline.model.families.qwen3_vl import Qwen3VL

DELTA_RULES = {
    "q_proj": ShardRule("gated_heads"),
    "in_proj_qkv": ShardRule("delta_mixed"),
    "conv1d": ShardRule("delta_mixed"),
    "in_proj_z": ShardRule("delta_values"),
    "in_proj_a": ShardRule("delta_heads"),
    "in_proj_b": ShardRule("delta_heads"),
    "linear_attn": ShardRule("delta_heads"),  # its own weights: A_log, dt_bias
    "out_proj": ShardRule("delta_values", dim=1),
}
HYBRID: Any = {
    "shard_rules": {**SHARD_RULES, **DELTA_RULES},
    "has_linear_attention": True,
    "dense_layers": frozenset({"in_proj_a", "in_proj_b", "shared_expert_gate"}),  # a number per head or token
}


class Qwen35(Qwen3VL):
    architecture = ModelArchitecture("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", **HYBRID)


class Qwen35Moe(Qwen35):
    architecture = ModelArchitecture("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", **HYBRID)
