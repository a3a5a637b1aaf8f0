"""Compiles the layers of vision tower and language model, which fuses what they do element by element.

Attention stays as it is. It writes to the KV cache of its own layer, so with it every layer would be compiled apart;
without it, all have the same code. The number of tokens is symbolic, so that one compilation serves all steps.
"""

from __future__ import annotations

import os
import shutil
from itertools import chain

import torch

from pipeline.errors import JobError
from pipeline.model import hf_models
from pipeline.model.engines.torch import attention
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.model_loader import LoadedModel

COMPILERS = ("g++", "clang++")


def compile_layers(loaded: LoadedModel, collectives: Collectives) -> None:
    """torch compiles a layer when it first runs."""
    if not any(map(shutil.which, COMPILERS)) and not os.environ.get("CXX"):
        raise JobError(f"engine.compile: torch needs a compiler and finds none of {', '.join(COMPILERS)} here")
    attend = torch.compiler.disable(attention.attend)  # type: ignore[no-untyped-call]
    hf_models.import_transformers().AttentionInterface.register(attention.ATTENTION_NAME, attend)
    collectives.all_reduce_sum = torch.compiler.disable(collectives.all_reduce_sum)  # type: ignore
    with_keys = [layer for layer in loaded.language_model.layers if hasattr(layer, "self_attn")]  # not a state
    for layer in chain(loaded.vision_tower.blocks, with_keys):
        layer.compile(dynamic=True)
