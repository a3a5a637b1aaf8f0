"""Counts a model's weights on torch's `meta` device, where tensors have shapes and no memory.

So the counts are those of transformers' own classes, for any model that a family names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch.weight_counts import WeightCounts


def count_meta_weights(config: Mapping[str, Any], dtype: str) -> WeightCounts:
    architecture = family_loader.load_architecture(config["model_type"])
    hf_config = hf_models.get_config_class(config["model_type"]).from_dict(dict(config))
    weight_dtype = hf_config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model_class = hf_models.get_model_class(config["model_type"])
        model = model_class._from_config(hf_config, dtype=weight_dtype or torch.bfloat16)
    counts = {name: weight.numel() for name, weight in model.named_parameters()}
    vision = sum(count for name, count in counts.items() if architecture.is_vision_weight(name))
    rules = {name: architecture.get_shard_rule(name) for name in counts}
    return WeightCounts(
        text_config=model.config.get_text_config(),
        vision_config=model.get_submodule(architecture.vision_tower).config,
        item_bytes=model.dtype.itemsize,
        vision=vision,
        text=sum(counts.values()) - vision,
        vocabulary=sum(counts[name] for name, rule in rules.items() if rule and rule.unit == "vocabulary"),
        experts=sum(count for name, count in counts.items() if ".experts." in name),
    )
