"""Merges a LoRA adapter of PEFT's layout into weights while they are read: W + B A alpha / r, in float32.

Any part of a weight can be merged by itself, so every rank merges what it reads, and weights are rounded to four bits
after that. What this formula does not describe is refused by its key in adapter_config.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import JobError
from pipeline.model.families.model_architecture import ModelArchitecture

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
STORED_PREFIX, SUFFIXES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
UNSUPPORTED_KEYS = (  # of adapter_config.json, where they are set
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # of training, which leave the base as it was
ADVICE = "merge it with PEFT's merge_and_unload, save the model and name that as model.weights"


class Adapter:
    """The open files of an adapter."""

    def __init__(self, folder: Path, architecture: ModelArchitecture):
        self.folder = folder
        self.config = read_config(folder)
        try:
            file: Any = safe_open(folder / WEIGHTS_FILE, framework="pt")
        except (OSError, SafetensorError) as error:
            raise JobError(f"model.adapter: {folder / WEIGHTS_FILE} cannot be read: {error}") from error
        self.file = file
        stored_names: list[str] = list(file.keys())
        if foreign := [name for name in stored_names if not name.endswith(SUFFIXES)]:
            raise JobError(f"model.adapter: {folder} holds {foreign[0]}, which is not of a linear layer; {ADVICE}")
        modules = {name.removesuffix(suffix) for suffix in SUFFIXES for name in stored_names if name.endswith(suffix)}
        self.modules = {  # by the name of the weight in the model: the module's name in the file
            architecture.to_parameter_name(f"{module.removeprefix(STORED_PREFIX)}.weight"): module
            for module in sorted(modules)
        }

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of the weights that can be merged, by name."""
        for name, module in self.modules.items():
            if name not in shapes:
                raise JobError(
                    f"model.adapter: {self.folder} changes {name}, which is no dense weight of this checkpoint"
                )
            (rank, width), (height, other_rank) = (self.get_shape(module, suffix) for suffix in SUFFIXES)
            if rank != other_rank or (height, width) != shapes[name]:
                raise JobError(
                    f"model.adapter: {self.folder} is made for another model: {name} is {shapes[name]} here and "
                    f"({height}, {width}) there"
                )

    def get_shape(self, module: str, suffix: str) -> list[int]:
        return list(self.file.get_slice(module + suffix).get_shape())

    def merge(self, name: str, weight: Tensor, index: tuple[slice, ...]) -> Tensor:
        """`weight` is the part of the whole weight that `index` selects."""
        if (module := self.modules.get(name)) is None:
            return weight
        rows, columns = (*index, slice(None))[:2]
        down, up = (self.file.get_tensor(module + suffix).float() for suffix in SUFFIXES)
        scale = compute_scale(self.config, module.removeprefix(STORED_PREFIX), rank=len(down))
        merged: Tensor = weight.float() + up[rows] @ down[:, columns] * scale
        return merged.to(weight.dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """JobError where it describes something else than the formula above."""
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"model.adapter: {path} cannot be read: {error}") from error
    if (kind := config.get("peft_type")) != "LORA":
        raise JobError(f"model.adapter: {folder} is an adapter of type {kind}, not LORA; {ADVICE}")
    unsupported = [key for key in UNSUPPORTED_KEYS if config.get(key)]
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    unsupported += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_STARTS else []
    if unsupported:
        raise JobError(f"model.adapter: {folder} uses {', '.join(unsupported)}, which is not supported; {ADVICE}")
    return config


def compute_scale(config: Mapping[str, Any], module: str, *, rank: int) -> float:
    """
    >>> config = {"lora_alpha": 16, "alpha_pattern": {"q_proj": 8}, "use_rslora": False}
    >>> compute_scale(config, "layers.0.q_proj", rank=4), compute_scale(config, "layers.0.k_proj", rank=4)
    (2.0, 4.0)
    """
    patterns = config.get("alpha_pattern") or {}
    alphas = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(alphas, config.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
