"""Describes a family's transformers model: where its parts are, how weights are divided, how the tower is called.

Loader, sharding, quantisation, sizes and vision code ask a `ModelArchitecture` and never name a module themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

PatchGrid = tuple[int, int, int]  # patches in time, height, width
ShardUnit = Literal[
    "vocabulary",
    "experts",
    "mlp",
    "heads",
    "key_heads",
    "gated_heads",  # each with a gate of its size
    "delta_heads",  # of Gated DeltaNet: one number for each value head
    "delta_values",  # its value heads
    "delta_mixed",  # its queries, keys and values, one after the other
]


class VisionTower(Protocol):
    """A vision tower as the engine calls it; built as `VisionTower(module)` of the module in transformers' model."""

    module: Any
    config: Any
    feature_layers: int  # 1, and one for each further layer of the language model that takes vision features
    feature_width: int
    blocks: Iterable[Any]  # its layers

    def encode_patches(self, patches: Tensor, grids: Sequence[PatchGrid], *, has_flash: bool) -> list[Tensor]:
        """Features [tokens, width] of each feature layer, of normalised patches [patches, values], grid after grid."""
        ...


@dataclass(frozen=True, slots=True)
class ShardRule:
    """How tensor parallelism divides a weight [out, in]: along `dim`, between whole units."""

    unit: ShardUnit
    dim: int = 0

    @property
    def makes_summands(self) -> bool:
        """Whether the outputs of all ranks must be summed."""
        return self.dim == 1 or self.unit == "experts"


SHARD_RULES: Mapping[str, ShardRule] = {  # by the module that owns a weight; other weights are on every rank
    "embed_tokens": ShardRule("vocabulary"),
    "lm_head": ShardRule("vocabulary"),
    "experts": ShardRule("experts"),
    "gate_proj": ShardRule("mlp"),
    "up_proj": ShardRule("mlp"),
    "down_proj": ShardRule("mlp", dim=1),
    "q_proj": ShardRule("heads"),
    "k_proj": ShardRule("key_heads"),
    "v_proj": ShardRule("key_heads"),
    "o_proj": ShardRule("heads", dim=1),
}


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """The defaults are those of the Qwen-VL line."""

    model_class: str  # of transformers
    config_class: str
    vision_tower: str = "model.visual"  # names of submodules
    language_model: str = "model.language_model"  # with `embed_tokens` and `layers`
    lm_head: str = "lm_head"
    tower_class: str = "pipeline.model.families.qwen_tower:QwenTower"  # a name, because the module imports torch
    stored_names: tuple[tuple[str, str], ...] = ()  # patterns of names in files, and what replaces them
    has_linear_attention: bool = False  # some layers keep a state in place of keys and values
    dense_layers: frozenset[str] = frozenset()  # those of the language model's layers that are never in four bits
    position_axes: int = 3  # rows of position ids: time, height and width in M-RoPE
    shard_rules: Mapping[str, ShardRule] = field(default_factory=lambda: SHARD_RULES)

    def open_vision_tower(self, model: Any) -> VisionTower:
        module, _, class_name = self.tower_class.partition(":")
        tower: VisionTower = getattr(import_module(module), class_name)(model.get_submodule(self.vision_tower))
        return tower

    def to_parameter_name(self, stored_name: str) -> str:
        """The model's name of a weight in a file. Files older than transformers 4.52 do not name the parts.

        >>> ModelArchitecture("", "").to_parameter_name("model.layers.0.mlp.up_proj.weight")
        'model.language_model.layers.0.mlp.up_proj.weight'
        >>> ModelArchitecture("", "").to_parameter_name("visual.merger.ln_q.weight")
        'model.visual.merger.ln_q.weight'
        """
        for pattern, replacement in self.stored_names:
            stored_name = re.sub(pattern, replacement, stored_name)
        bare_name = stored_name.removeprefix("model.")
        for part in (self.vision_tower, self.language_model, self.lm_head):
            bare_part = part.removeprefix("model.")
            if bare_name.startswith(f"{bare_part}."):
                return part + bare_name.removeprefix(bare_part)
        return f"{self.language_model}.{bare_name}"

    def is_vision_weight(self, name: str) -> bool:
        return name.startswith(f"{self.vision_tower}.")

    def is_text_layer(self, name: str) -> bool:
        """Whether a module or weight belongs to a layer of the language model, not to embeddings, head or tower."""
        return name.startswith(f"{self.language_model}.layers.")

    def is_quantizable(self, name: str) -> bool:
        """Whether a module or weight may be in four bits, by the part of the model that it belongs to."""
        return self.is_text_layer(name) and self.dense_layers.isdisjoint(name.split("."))

    def get_shard_rule(self, name: str) -> ShardRule | None:
        """The rule for a weight by its name in the model; None where every rank holds all of it."""
        owner = name.split(".")[-2]
        return None if self.is_vision_weight(name) else self.shard_rules.get(owner)
