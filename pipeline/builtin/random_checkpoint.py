"""Write tiny checkpoints of random weights in the layout of the Hugging Face hub.

`from_pretrained` of the real classes reads them, so code that works with them works with a real checkpoint. Only the
sizes differ: a few layers, and a vocabulary of single bytes and a few merges. The same seed gives the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.model import hf_models
from pipeline.model.families.qwen3_vl import Qwen3VL
from pipeline.model.family_loader import load_family_class

CONTROL_TOKEN_NAMES = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
CONTROL_TOKEN_NAMES += " vision_start vision_end vision_pad image_pad video_pad"
CODE_TOKEN_NAMES = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep"
SPECIAL_TOKENS = [f"<|{name}|>" for name in CONTROL_TOKEN_NAMES.split()]
ADDED_TOKENS = [
    *SPECIAL_TOKENS,
    "<tool_call>",
    "</tool_call>",
    *(f"<|{name}|>" for name in CODE_TOKEN_NAMES.split()),
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("e", "r"), ("o", "n"), ("Ġ", "a"), ("Ġ", "the")]
MERGES += [("{", '"'), ('"', ":"), ('"', ","), ('"', "}"), ("Ġ", '"')]
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PART_TEMPLATE = (
    "{% if part.type == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
)
SYSTEM_TEMPLATE = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}" + PART_TEMPLATE + "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "initializer_range": 0.15,  # wide enough that the two most likely tokens rarely tie
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
VISION_CONFIG: dict[str, Any] = {"depth": 3, "num_heads": 2, "initializer_range": 0.15}
MOE_CONFIG = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
QWEN3_VISION_CONFIG = VISION_CONFIG | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "patch_size": 16,
}
QWEN3_VISION_CONFIG |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
MODEL_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (TEXT_CONFIG, VISION_CONFIG | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
    "qwen2_5_vl": (
        TEXT_CONFIG,
        VISION_CONFIG
        | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (TEXT_CONFIG | {"head_dim": 16}, QWEN3_VISION_CONFIG),
    "qwen3_vl_moe": (TEXT_CONFIG | {"head_dim": 16} | MOE_CONFIG, QWEN3_VISION_CONFIG),
}
HYBRID_TEXT_CONFIG = TEXT_CONFIG | {
    "num_hidden_layers": 4,  # three of linear attention, one of full attention
    "head_dim": 32,
    "rope_parameters": TEXT_CONFIG["rope_parameters"]
    | {"partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2], "mrope_interleaved": True},
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRID_VISION_CONFIG = {key: value for key, value in QWEN3_VISION_CONFIG.items() if key != "deepstack_visual_indexes"}
MODEL_CONFIGS |= {
    "cosmos3_omni": MODEL_CONFIGS["qwen3_vl"],
    "qwen3_5": (HYBRID_TEXT_CONFIG, HYBRID_VISION_CONFIG),
    "qwen3_5_moe": (
        HYBRID_TEXT_CONFIG | MOE_CONFIG | {"shared_expert_intermediate_size": 64},
        HYBRID_VISION_CONFIG,
    ),
}
CLIP_MEAN_AND_STD = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def write_random_checkpoint(
    folder: Path,
    model_type: str,
    *,
    vocabulary: str | Tokenizer = "tiny",
    seed: int = 0,
    text_config: dict[str, Any] | None = None,
    vision_config: dict[str, Any] | None = None,
    **config_overrides: Any,
) -> Path:
    """Write a checkpoint into `folder` and return the folder. Overrides are keys of config.json."""
    tokenizer = vocabulary if isinstance(vocabulary, Tokenizer) else build_tiny_tokenizer()
    text, vision = MODEL_CONFIGS[model_type]
    end, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    text = text | {"vocab_size": -(-tokenizer.get_vocab_size() // 32) * 32, "bos_token_id": pad, "eos_token_id": end}
    text |= text_config or {}
    vision = vision | (vision_config or {})
    config = hf_models.get_config_class(model_type)(
        text_config=text, vision_config=vision, **find_vision_token_ids(tokenizer), **config_overrides
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf_models.get_model_class(model_type)(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = hf_models.import_transformers().GenerationConfig(
        eos_token_id=[end, pad], pad_token_id=pad, do_sample=True, temperature=0.7, top_p=0.8, top_k=20
    )
    model.save_pretrained(folder)
    saved_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", saved_config | {"model_type": model_type})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", build_tokenizer_config(model_type))
    write_json(folder / "preprocessor_config.json", build_preprocessor_config(model_type))
    return folder


def build_tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's way of splitting and its special tokens after a few hundred pieces."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in MERGES]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(token, special=token in SPECIAL_TOKENS, normalized=False) for token in ADDED_TOKENS]
    )
    return tokenizer


def find_vision_token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: tokenizer.token_to_id(f"<|{name}|>") for key, name in names.items()}


def is_qwen3_like(model_type: str) -> bool:
    return issubclass(load_family_class(model_type), Qwen3VL)


def build_tokenizer_config(model_type: str) -> dict[str, Any]:
    system = "" if is_qwen3_like(model_type) else SYSTEM_TEMPLATE
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE.replace("SYSTEM", system, 1),
    }


def build_preprocessor_config(model_type: str) -> dict[str, Any]:
    qwen3 = is_qwen3_like(model_type)
    mean, std = ([0.5] * 3, [0.5] * 3) if qwen3 else CLIP_MEAN_AND_STD
    smallest, largest = (65536, 16777216) if qwen3 else (3136, 12845056)
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": smallest, "longest_edge": largest},
        "patch_size": 16 if qwen3 else 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": mean,
        "image_std": std,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
