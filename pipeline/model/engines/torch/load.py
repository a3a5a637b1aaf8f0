"""A checkpoint's folder -> its model on a device, ready to be driven with packed tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from pipeline.model import library, weights
from pipeline.model.engines.torch import attention, int4


@dataclass(frozen=True, slots=True)
class Loaded:
    tower: Any  # pixels -> embeddings
    language: Any  # embeddings -> hidden states
    head: Any  # hidden states -> logits
    stop: frozenset[int]
    cache_shape: tuple[int, int, int]  # layers, heads, dim
    vocabulary: int

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.language.embed_tokens.weight.device  # type: ignore[no-any-return]


def load(
    folder: Path,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Loaded:
    """`config` is config.json with what a job changes in it."""
    library.transformers().utils.logging.disable_progress_bar()  # a run shows its own
    library.transformers().AttentionInterface.register(attention.NAME, attention.attend)
    said = dict(config or weights.config(folder))
    kind = said["model_type"]
    made = library.config_class(kind).from_dict(said)
    how = {"config": made, "dtype": dtype, "attn_implementation": "sdpa"}
    model: Any = int4.load(library.model_class(kind), folder, device=device, quantize=quantize, **how)
    model.eval().requires_grad_(False).to(device)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.NAME
    tower, text = model.model.visual, model.config.text_config
    flatten_patches(tower.patch_embed)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shape = text.num_hidden_layers, text.num_key_value_heads, head_dim
    return Loaded(tower, model.model.language_model, model.lm_head, stop_tokens(folder, model), shape, text.vocab_size)


def flatten_patches(embed: Any) -> None:
    """A convolution whose kernel is the whole patch is a matrix product, and many times faster as one."""
    kernel = embed.proj.weight.flatten(1)
    embed.forward = lambda patches: linear(patches.to(kernel.dtype), kernel, embed.proj.bias)


def stop_tokens(folder: Path, model: Any) -> frozenset[int]:
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    said = model.config.text_config.eos_token_id if said is None else said
    return frozenset(said if isinstance(said, list) else [] if said is None else [said])
