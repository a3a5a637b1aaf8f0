"""Qwen3.5, 3.6 and 3.8, dense and mixture of experts: sizes, prompts and positions of Qwen3-VL, on a hybrid model.

Three of four layers are Gated DeltaNet layers, which keep a state instead of keys and values. The checkpoints think
unless their chat template is told not to, and the template trims the text of every turn.
"""

from __future__ import annotations

from typing import Any

from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.model.families.qwen3_vl import Qwen3VL

HYBRID: Any = {
    "has_linear_attention": True,
    "dense_layers": frozenset({"in_proj_a", "in_proj_b", "shared_expert_gate"}),  # a number per head or token
}


class Qwen35(Qwen3VL):
    architecture = ModelArchitecture("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", **HYBRID)


class Qwen35Moe(Qwen35):
    architecture = ModelArchitecture("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", **HYBRID)
