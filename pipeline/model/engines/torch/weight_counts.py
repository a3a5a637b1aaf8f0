"""Counts the weights of the Qwen-VL line from a config alone.

torch and transformers take seconds to import, and `plan` needs them for nothing else. A config that leaves out what a
count needs, and a model that is not known here, are counted on a model without memory (`meta_model.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pipeline.model import family_loader

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
VISION_DEFAULTS = {"in_channels": 3, "temporal_patch_size": 2, "spatial_merge_size": 2}
TEXT_DEFAULTS: dict[str, Any] = {"attention_bias": False, "linear_conv_kernel_dim": 4}
TEXT_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MIXTURE_KEYS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
DELTA_KEYS = ("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads")
TOWER_KEYS = ("depth", "hidden_size", "patch_size")
QWEN3_TOWER_KEYS = (*TOWER_KEYS, "intermediate_size", "out_hidden_size", "num_position_embeddings")
LIST_KEY = "deepstack_visual_indexes"


@dataclass(frozen=True, slots=True)
class WeightCounts:
    text_config: Any
    vision_config: Any
    item_bytes: int  # of a weight that is not in four bits
    vision: int
    text: int
    vocabulary: int  # those of the text model's embeddings and head, which are never in four bits
    experts: int  # those of the text model's experts


@dataclass(frozen=True, slots=True)
class KnownModel:
    """How the weights of a model class of transformers are counted, and the keys that its config must have."""

    count_tower: Callable[[Any], int]
    tower_keys: tuple[str, ...]
    count_text_layer: Callable[[Any, int], tuple[int, int]]  # a layer's weights, and those of its experts
    text_keys: tuple[str, ...]


def count_weights(config: Mapping[str, Any], dtype: str) -> WeightCounts | None:
    """None where a model has to be built for it."""
    known = KNOWN_MODELS.get(family_loader.load_architecture(config["model_type"]).model_class)
    dtype = (config.get("dtype") or config.get("torch_dtype") or "bfloat16") if dtype == "auto" else dtype
    text_config = TEXT_DEFAULTS | dict(config.get("text_config", config))
    if "num_local_experts" in text_config:  # as transformers saves it
        text_config.setdefault("num_experts", text_config["num_local_experts"])
    vision_config = VISION_DEFAULTS | dict(config.get("vision_config", {}))
    if known is None or dtype not in DTYPE_BYTES:
        return None
    if not (has_keys(text_config, known.text_keys) and has_keys(vision_config, (*VISION_DEFAULTS, *known.tower_keys))):
        return None
    if "linear_key_head_dim" in known.text_keys and not text_config.get("layer_types"):
        interval = text_config.get("full_attention_interval", 4)
        kinds = *["linear_attention"] * (interval - 1), "full_attention"
        text_config["layer_types"] = [kinds[layer % interval] for layer in range(text_config["num_hidden_layers"])]
    text, vision = SimpleNamespace(**text_config), SimpleNamespace(**vision_config)
    layers = [known.count_text_layer(text, layer) for layer in range(text.num_hidden_layers)]
    vocabulary = text.vocab_size * text.hidden_size * (1 if config.get("tie_word_embeddings") else 2)
    return WeightCounts(
        text_config=text,
        vision_config=vision,
        item_bytes=DTYPE_BYTES[dtype],
        vision=known.count_tower(vision),
        text=vocabulary + sum(layer for layer, _ in layers) + text.hidden_size,
        vocabulary=vocabulary,
        experts=sum(experts for _, experts in layers),
    )


def has_keys(section: Mapping[str, Any], keys: Collection[str]) -> bool:
    """With a list or whole numbers above zero."""
    values = [section.get(key) for key in keys if key != LIST_KEY]
    has_list = LIST_KEY not in keys or isinstance(section.get(LIST_KEY), list)
    return has_list and all(isinstance(value, int) and value > 0 for value in values)


def count_linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return inputs * outputs + outputs * bias


def count_patch_values(vision: Any) -> int:
    return int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)


def count_tower_attention(width: int) -> int:
    return count_linear(width, 3 * width) + count_linear(width, width)


def count_merger(vision: Any, width: int, out_width: int) -> int:
    """Without its norm."""
    merged_width = width * vision.spatial_merge_size**2
    return count_linear(merged_width, merged_width) + count_linear(merged_width, out_width)


def count_qwen2_tower(vision: Any) -> int:
    width = vision.embed_dim
    mlp_width = int(width * vision.mlp_ratio)
    mlp = count_linear(width, mlp_width) + count_linear(mlp_width, width)
    block = 4 * width + count_tower_attention(width) + mlp
    merger = 2 * width + count_merger(vision, width, vision.hidden_size)
    return int(count_patch_values(vision) * width + vision.depth * block + merger)


def count_qwen2_5_tower(vision: Any) -> int:
    width, mlp_width = vision.hidden_size, vision.intermediate_size
    mlp = 2 * count_linear(width, mlp_width) + count_linear(mlp_width, width)
    block = 2 * width + count_tower_attention(width) + mlp
    merger = width + count_merger(vision, width, vision.out_hidden_size)
    return int(count_patch_values(vision) * width + vision.depth * block + merger)


def count_qwen3_5_tower(vision: Any) -> int:
    width, mlp_width = vision.hidden_size, vision.intermediate_size
    mlp = count_linear(width, mlp_width) + count_linear(mlp_width, width)
    block = 4 * width + count_tower_attention(width) + mlp
    merger = 2 * width + count_merger(vision, width, vision.out_hidden_size)
    inputs = count_linear(count_patch_values(vision), width) + vision.num_position_embeddings * width
    return int(inputs + vision.depth * block + merger)


def count_qwen3_tower(vision: Any) -> int:
    """As that of Qwen3.5, with a merger for each further layer that takes features."""
    width = vision.hidden_size
    merger = 2 * width * vision.spatial_merge_size**2 + count_merger(vision, width, vision.out_hidden_size)
    return int(count_qwen3_5_tower(vision) + len(vision.deepstack_visual_indexes) * merger)


def count_mlp(text: Any, width: int) -> int:
    return int(3 * text.hidden_size * width)


def count_experts(text: Any) -> int:
    return int(text.num_experts * count_mlp(text, text.moe_intermediate_size))


def count_attention(text: Any, head_dim: int, *, query_parts: int = 1, bias: bool, out_bias: bool = False) -> int:
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    inputs = count_linear(text.hidden_size, query_parts * queries, bias=bias)
    inputs += 2 * count_linear(text.hidden_size, keys, bias=bias)
    return int(inputs + count_linear(queries, text.hidden_size, bias=out_bias))


def count_normed_attention(text: Any, *, query_parts: int = 1) -> int:
    bias = bool(text.attention_bias)
    attention = count_attention(text, text.head_dim, query_parts=query_parts, bias=bias, out_bias=bias)
    return int(attention + 2 * text.head_dim)


def count_qwen2_layer(text: Any, layer: int) -> tuple[int, int]:
    attention = count_attention(text, text.hidden_size // text.num_attention_heads, bias=True)
    return 2 * text.hidden_size + attention + count_mlp(text, text.intermediate_size), 0


def count_qwen3_layer(text: Any, layer: int) -> tuple[int, int]:
    return 2 * text.hidden_size + count_normed_attention(text) + count_mlp(text, text.intermediate_size), 0


def count_qwen3_moe_layer(text: Any, layer: int) -> tuple[int, int]:
    is_dense = layer in (getattr(text, "mlp_only_layers", None) or ())
    if is_dense or (layer + 1) % getattr(text, "decoder_sparse_step", 1):
        return count_qwen3_layer(text, layer)
    experts = count_experts(text)
    router = text.num_experts * text.hidden_size
    return 2 * text.hidden_size + count_normed_attention(text) + experts + router, experts


def count_hybrid_mixer(text: Any, layer: int) -> int:
    """A layer's attention, or its Gated DeltaNet."""
    if text.layer_types[layer] != "linear_attention":
        return count_normed_attention(text, query_parts=2)  # each query with a gate
    heads = text.linear_num_value_heads
    values = heads * text.linear_value_head_dim
    mixed = 2 * text.linear_num_key_heads * text.linear_key_head_dim + values
    projections = text.hidden_size * (mixed + 2 * values + 2 * heads)
    return int(projections + mixed * text.linear_conv_kernel_dim + 2 * heads + text.linear_value_head_dim)


def count_qwen3_5_layer(text: Any, layer: int) -> tuple[int, int]:
    mlp = count_mlp(text, text.intermediate_size)
    return 2 * text.hidden_size + count_hybrid_mixer(text, layer) + mlp, 0


def count_qwen3_5_moe_layer(text: Any, layer: int) -> tuple[int, int]:
    experts = count_experts(text)
    shared = count_mlp(text, text.shared_expert_intermediate_size)
    gates = (text.num_experts + 1) * text.hidden_size
    return 2 * text.hidden_size + count_hybrid_mixer(text, layer) + experts + shared + gates, experts


DENSE_KEYS = (*TEXT_KEYS, "intermediate_size")
KNOWN_MODELS = {
    "Qwen2VLForConditionalGeneration": KnownModel(
        count_qwen2_tower, (*TOWER_KEYS, "embed_dim", "mlp_ratio"), count_qwen2_layer, DENSE_KEYS
    ),
    "Qwen2_5_VLForConditionalGeneration": KnownModel(
        count_qwen2_5_tower, (*TOWER_KEYS, "intermediate_size", "out_hidden_size"), count_qwen2_layer, DENSE_KEYS
    ),
    "Qwen3VLForConditionalGeneration": KnownModel(
        count_qwen3_tower, (*QWEN3_TOWER_KEYS, LIST_KEY), count_qwen3_layer, (*DENSE_KEYS, "head_dim")
    ),
    "Qwen3VLMoeForConditionalGeneration": KnownModel(
        count_qwen3_tower,
        (*QWEN3_TOWER_KEYS, LIST_KEY),
        count_qwen3_moe_layer,
        (*DENSE_KEYS, "head_dim", *MIXTURE_KEYS),
    ),
    "Qwen3_5ForConditionalGeneration": KnownModel(
        count_qwen3_5_tower, QWEN3_TOWER_KEYS, count_qwen3_5_layer, (*DENSE_KEYS, "head_dim", *DELTA_KEYS)
    ),
    "Qwen3_5MoeForConditionalGeneration": KnownModel(
        count_qwen3_5_tower,
        QWEN3_TOWER_KEYS,
        count_qwen3_5_moe_layer,
        (*TEXT_KEYS, "head_dim", "shared_expert_intermediate_size", *MIXTURE_KEYS, *DELTA_KEYS),
    ),
}
