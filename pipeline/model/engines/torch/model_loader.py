"""Loads a checkpoint as a model on a device, or the share of it that one rank holds.

The model is built without memory. Then each weight is read, cut and sent to its device, one by one: no more than one
weight is ever held twice, and no rank reads what it does not keep.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import JobError
from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import attention, experts, fla_kernels, gated_delta_net, int4, shard
from pipeline.model.engines.torch.adapter import Adapter
from pipeline.model.engines.torch.checkpoint import Checkpoint
from pipeline.model.engines.torch.int4_linear import KERNEL_DTYPE
from pipeline.model.engines.torch.linear_state import StateShape
from pipeline.model.engines.torch.memory import refuse_too_large
from pipeline.model.engines.torch.shard import SINGLE_RANK, TensorParallel, WeightLayout
from pipeline.model.families.model_architecture import ModelArchitecture, VisionTower

ModelOutput = Literal["logits", "states", "features"]  # of the head, the language model, or the vision tower


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, in the parts that the engine runs."""

    architecture: ModelArchitecture
    vision_tower: VisionTower  # patches -> features
    language_model: Any  # embeddings -> hidden states
    lm_head: Any  # hidden states -> logits
    stop_tokens: frozenset[int]
    cache_shape: tuple[int, int, int]  # layers with keys and values, key heads of this rank, head dim
    vocabulary_size: int
    state_shape: StateShape | None = None  # where the model has linear attention

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device  # type: ignore[no-any-return]


def load_model(
    folder: Path, config: Mapping[str, Any] | None = None, *, tp: TensorParallel = SINGLE_RANK, **options: Any
) -> LoadedModel:
    """The model in parts, with packed attention. `config` is config.json with the job's changes."""
    config = config or family_loader.load_config(folder)
    architecture = family_loader.load_architecture(config["model_type"])
    model = build_model(folder, config, tp=tp, **options)
    layers = model.get_submodule(architecture.language_model).layers
    weight = next(layers.parameters())
    if weight.is_cuda and hasattr(model.config.get_text_config(), "num_experts"):
        experts.use_all_experts(model, weight.device, weight.dtype)
    use_packed_attention(model)
    language_model = model.get_submodule(architecture.language_model)
    if hasattr(language_model, "_deepstack_process"):
        language_model._deepstack_process = add_deepstack_features
    text_config = model.config.get_text_config()
    first_key_head, end_key_head = shard.assign_key_heads(text_config, tp)
    embeddings = language_model.embed_tokens.weight
    kernels = fla_kernels.load_kernels(embeddings.device, embeddings.dtype)
    state_shape = gated_delta_net.use_packed_states(language_model, kernels)
    cache_layers = text_config.num_hidden_layers - (state_shape.layers if state_shape else 0)
    return LoadedModel(
        architecture,
        architecture.open_vision_tower(model),
        language_model,
        model.get_submodule(architecture.lm_head),
        load_stop_tokens(folder, text_config),
        (cache_layers, end_key_head - first_key_head, shard.get_head_dim(text_config)),
        text_config.vocab_size,
        state_shape,
    )


def load_vision_tower(folder: Path, config: Mapping[str, Any] | None = None, **options: Any) -> VisionTower:
    """The vision tower alone: no weight of the language model is read."""
    config = config or family_loader.load_config(folder)
    model = build_model(folder, config, output="features", **options)
    use_packed_attention(model)
    return family_loader.load_architecture(config["model_type"]).open_vision_tower(model)


def use_packed_attention(model: Any) -> None:
    hf_models.import_transformers().AttentionInterface.register(attention.ATTENTION_NAME, attention.attend)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.ATTENTION_NAME


def add_deepstack_features(hidden_states: Tensor, pad_indices: Tensor, features: Tensor) -> Tensor:
    """In place of transformers' own, whose mask as an index makes the host wait. hidden_states: [1, tokens, width]."""
    return hidden_states.index_add_(1, pad_indices, features[None].to(hidden_states.dtype))


def build_model(
    folder: Path,
    config_json: Mapping[str, Any],
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    adapter: Path | None = None,
    tp: TensorParallel = SINGLE_RANK,
    output: ModelOutput = "logits",
) -> Any:
    """transformers' model with its weights, and those of an adapter's folder merged; four-bit layers are ours.

    The parts that the output does not need are left out.
    """
    device = torch.device(device)
    architecture = family_loader.load_architecture(config_json["model_type"])
    config, group_sizes = parse_config(config_json, tp_size=tp.size, quantize=quantize)
    config._attn_implementation = "sdpa"
    with without_weights():
        model = hf_models.get_model_class(config_json["model_type"])(config)
    if output != "logits":
        model.set_submodule(architecture.lm_head, nn.Identity())
    if output == "features":
        model.set_submodule(architecture.language_model, nn.Identity())
    checkpoint = Checkpoint(folder, architecture, Adapter(adapter, architecture) if adapter else None)
    weight_dtype = choose_dtype(dtype, config, checkpoint, is_int4=bool(group_sizes), device=device)
    if checkpoint.adapter is not None and output != "features":
        checkpoint.adapter.check_shapes(
            {
                name: tuple(weight.shape)
                for name, weight in model.named_parameters()
                if name in checkpoint.stored_tensors
            }
        )
    layout = WeightLayout(architecture, tp, weight_dtype, device, group_sizes, quantize_dense=bool(quantize))
    refuse_too_large(model, layout)
    fill_weights(model, checkpoint, layout)
    return model.eval().requires_grad_(False).to(device)


def parse_config(config_json: Mapping[str, Any], *, tp_size: int, quantize: str | None) -> tuple[Any, tuple[int, ...]]:
    """transformers' config, and the group sizes that four-bit weights may have; a JobError where they do not fit."""
    group_sizes = int4.find_group_sizes(config_json, quantize)
    config = hf_models.get_config_class(config_json["model_type"]).from_dict(
        {key: value for key, value in config_json.items() if key != "quantization_config"}
    )
    shard.check_tp_size(config.get_text_config(), tp_size, group_sizes=group_sizes)
    return config, group_sizes


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules made inside have parameters without memory; buffers, which are computed, have theirs."""
    register = nn.Module.register_parameter

    def register_without_memory(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_without_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def choose_dtype(
    requested: str, config: Any, checkpoint: Checkpoint, *, is_int4: bool, device: torch.device
) -> torch.dtype:
    """The job's dtype, or else the checkpoint's."""
    if requested != "auto":
        return getattr(torch, requested)  # type: ignore[no-any-return]
    if is_int4:
        return KERNEL_DTYPE
    dtype: torch.dtype = config.dtype or config.get_text_config().dtype or checkpoint.detect_dtype()
    if device.type == "cpu" and dtype == torch.float16:
        return torch.float32  # most CPUs only imitate float16, at a quarter of the speed
    return dtype


def fill_weights(model: Any, checkpoint: Checkpoint, layout: WeightLayout) -> None:
    """Gives every parameter its weight, or this rank's part of it."""
    head_weight = f"{layout.architecture.lm_head}.weight"
    text_config = model.config.get_text_config()
    has_head = hasattr(model.get_submodule(layout.architecture.lm_head), "weight")
    is_head_tied = has_head and (
        model.config.tie_word_embeddings
        or (head_weight not in checkpoint and getattr(text_config, "tie_word_embeddings", False))
    )
    missing = [name for name, _ in model.named_parameters() if not has_weight(name, checkpoint)]
    if is_head_tied and head_weight in missing:
        missing.remove(head_weight)
    if missing:
        names = ", ".join(missing[:3])
        raise JobError(f"model.weights: {checkpoint.folder} lacks {len(missing)} of the model's weights: {names}, ...")
    for name, module in list(model.named_modules()):
        fill_module(model, name, module, checkpoint, layout)
    if is_head_tied:
        embeddings = model.get_submodule(layout.architecture.language_model).embed_tokens
        model.get_submodule(layout.architecture.lm_head).weight = embeddings.weight


def fill_module(model: Any, name: str, module: Any, checkpoint: Checkpoint, layout: WeightLayout) -> None:
    """Fills a module's own parameters, and puts a four-bit layer in its place where one is stored or asked for."""
    shapes = {kind: tuple(param.shape) for kind, param in module.named_parameters(recurse=False)}
    text_config = model.config.get_text_config()
    shards = {kind: layout.assign_shard(f"{name}.{kind}", text_config) for kind in shapes}
    for kind, shape in shapes.items():
        full_name = f"{name}.{kind}"
        if full_name not in checkpoint:
            continue
        weight = checkpoint.read_weight(full_name, shards[kind], shape=shape).to(layout.device, layout.dtype)
        rule = layout.architecture.get_shard_rule(full_name)
        if kind == "bias" and layout.tp.rank and rule is not None and rule.makes_summands:
            weight.zero_()  # the ranks' outputs are summed, so the bias must count once
        setattr(module, kind, nn.Parameter(weight, requires_grad=False))
    int4_layer = None
    if f"{name}.qweight" in checkpoint:
        int4_layer = int4.load_awq_layer(checkpoint, name, shards["weight"], module.bias, layout)
    elif layout.quantize_dense and shapes and layout.architecture.is_quantizable(name):
        group_size = shard.find_group_size(next(iter(shapes.values()))[-1], layout.group_sizes)
        int4_layer = int4.quantize_layer(module, group_size=group_size, device=layout.device)
    if int4_layer is not None:
        model.set_submodule(name, int4_layer)


def has_weight(name: str, stored_names: Container[str]) -> bool:
    awq_name = f"{name.removesuffix('.weight')}.qweight"
    return name in stored_names or (name.endswith(".weight") and awq_name in stored_names)


def load_stop_tokens(folder: Path, text_config: Any) -> frozenset[int]:
    path = folder / "generation_config.json"
    stop_tokens = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    if stop_tokens is None:
        stop_tokens = text_config.eos_token_id
    return frozenset(stop_tokens if isinstance(stop_tokens, list) else {stop_tokens} - {None})
