"""A tiny checkpoint of another maker's model, with random weights: Idefics3, on which the first SmolVLM is built."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
SPECIAL_TOKENS += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
IMAGE_SIDE, PATCH, SCALE = 32, 4, 2
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PROCESSOR = {"processor_class": "Idefics3Processor", "image_seq_len": (IMAGE_SIDE // PATCH // SCALE) ** 2}
IMAGE_PROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": IMAGE_SIDE * 2},
    "max_image_size": {"longest_edge": IMAGE_SIDE},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def write_foreign_checkpoint(folder: Path) -> Path:
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    tokenizer = build_tokenizer()
    vocab_size = -(-tokenizer.get_vocab_size() // 32) * 32
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "pad_token_id": ids["<pad>"],
            "bos_token_id": ids["<s>"],
            "eos_token_id": ids["<end_of_utterance>"],
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
        },
        scale_factor=SCALE,
        image_token_id=ids["<image>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<end_of_utterance>"]
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<s>"}
    described |= {"eos_token": "<end_of_utterance>", "model_max_length": 4096, "chat_template": CHAT_TEMPLATE}
    files = {"tokenizer_config": described, "processor_config": PROCESSOR, "preprocessor_config": IMAGE_PROCESSOR}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def build_tokenizer() -> Tokenizer:
    """A token for each byte, and the special ones."""
    pieces = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
    return tokenizer
