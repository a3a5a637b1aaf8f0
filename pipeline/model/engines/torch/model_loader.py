"""A checkpoint's folder -> its model on a device, or the share of it that one rank holds.

The model is built without memory, then each weight is read, cut, and sent to its device, one by one:
no more than one weight is ever held twice, and no rank reads what it does not keep.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from pipeline.errors import JobError
from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import attention, int4, shard
from pipeline.model.engines.torch.checkpoint import Checkpoint
from pipeline.model.engines.torch.int4_linear import KERNEL_DTYPE
from pipeline.model.engines.torch.loaded_model import LoadedModel, WeightLayout
from pipeline.model.engines.torch.memory import GB, measure_free_cuda_bytes
from pipeline.model.engines.torch.shard import SINGLE_RANK, TensorParallel

LM_HEAD_WEIGHT = "lm_head.weight"


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    tp: TensorParallel = SINGLE_RANK,
) -> LoadedModel:
    """`config` is config.json with what a job changes in it."""
    said = config or family_loader.load_config(folder)
    model = build_model(folder, said, dtype=dtype, device=torch.device(device), quantize=quantize, tp=tp)
    hf_models.import_transformers().AttentionInterface.register(attention.ATTENTION_NAME, attention.attend)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.ATTENTION_NAME
    tower, text = model.model.visual, model.config.text_config
    flatten_patch_embedding(tower.patch_embed)
    first, last = shard.assign_key_heads(text, tp)
    shape = text.num_hidden_layers, last - first, shard.get_head_dim(text)
    return LoadedModel(
        tower, model.model.language_model, model.lm_head, load_stop_tokens(folder, model), shape, text.vocab_size
    )


def build_model(
    folder: Path,
    config_json: Mapping[str, Any],
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    tp: TensorParallel = SINGLE_RANK,
) -> Any:
    """The model class with its weights, as transformers has it but for four-bit layers."""
    device = torch.device(device)
    config, groups = parse_config(config_json, tp_size=tp.size, quantize=quantize)
    config._attn_implementation = "sdpa"
    with without_weights():
        model = hf_models.get_model_class(config_json["model_type"])(config)
    files = Checkpoint(folder)
    chosen = choose_dtype(dtype, config, files, is_int4=bool(groups), device=device)
    form = WeightLayout(tp, chosen, device, groups, quantize_dense=bool(quantize))
    refuse_too_large(model, form)
    fill_weights(model, files, form)
    return model.eval().requires_grad_(False).to(device)


def parse_config(config_json: Mapping[str, Any], *, tp_size: int, quantize: str | None) -> tuple[Any, tuple[int, ...]]:
    """A config.json as transformers has it, and the sizes of groups of four-bit weights; a JobError if it cannot be."""
    groups = int4.find_group_sizes(config_json, quantize)
    config = hf_models.get_config_class(config_json["model_type"]).from_dict(
        {key: value for key, value in config_json.items() if key != "quantization_config"}
    )
    shard.check_tp_size(config.text_config, tp_size, group_sizes=groups)
    return config, groups


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules made in here have parameters without memory; buffers, which are computed, have theirs."""
    register = nn.Module.register_parameter

    def empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def choose_dtype(
    requested: str, config: Any, checkpoint: Checkpoint, *, is_int4: bool, device: torch.device
) -> torch.dtype:
    """The job's, else the checkpoint's. Most CPUs only imitate float16, at a quarter of the speed of float32."""
    if requested != "auto":
        return getattr(torch, requested)  # type: ignore[no-any-return]
    own: torch.dtype = (
        KERNEL_DTYPE if is_int4 else config.dtype or config.text_config.dtype or checkpoint.detect_dtype()
    )
    return torch.float32 if device.type == "cpu" and own == torch.float16 else own


def fill_weights(model: Any, checkpoint: Checkpoint, weight_layout: WeightLayout) -> None:
    """Every parameter gets its weight, or its part of it."""
    text = model.config.text_config
    tied = model.config.tie_word_embeddings or (
        LM_HEAD_WEIGHT not in checkpoint and getattr(text, "tie_word_embeddings", False)
    )
    lacking = [
        name
        for name, _ in model.named_parameters()
        if not has_weight(name, checkpoint) and not (tied and name == LM_HEAD_WEIGHT)
    ]
    if lacking:
        raise JobError(
            f"model.weights: {checkpoint.folder} lacks {len(lacking)} of the model's weights: {', '.join(lacking[:3])}, ..."
        )
    for name, module in list(model.named_modules()):
        whole = {own: tuple(param.shape) for own, param in module.named_parameters(recurse=False)}
        parts = {
            own: shard.assign_shard(f"{name}.{own}", text, weight_layout.tp, group_sizes=weight_layout.group_sizes)
            for own in whole
        }
        for own, shape in whole.items():
            if (full := f"{name}.{own}") not in checkpoint:
                continue
            weight = checkpoint.read_weight(full, parts[own], shape=shape).to(weight_layout.device, weight_layout.dtype)
            if own == "bias" and weight_layout.tp.rank and name.endswith(shard.ROW_SHARDED):
                weight.zero_()  # summands: it counts once
            setattr(module, own, nn.Parameter(weight, requires_grad=False))
        made = None
        if f"{name}.qweight" in checkpoint:
            made = int4.load_awq_layer(
                checkpoint, name, parts["weight"], module.bias, dtype=weight_layout.dtype, device=weight_layout.device
            )
        elif weight_layout.quantize_dense and whole:
            group = shard.find_group_size(next(iter(whole.values()))[-1], weight_layout.group_sizes)
            made = int4.quantize_layer(name, module, group_size=group, device=weight_layout.device)
        if made is not None:
            model.set_submodule(name, made)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight


def has_weight(name: str, stored_names: Container[str]) -> bool:
    return name in stored_names or (
        name.endswith(".weight") and f"{name.removesuffix('.weight')}.qweight" in stored_names
    )


def flatten_patch_embedding(patch_embedding: Any) -> None:
    """A convolution whose kernel is the whole patch is a matrix product, and many times faster as one."""
    kernel = patch_embedding.proj.weight.flatten(1)
    patch_embedding.forward = lambda patches: linear(patches.to(kernel.dtype), kernel, patch_embedding.proj.bias)


def load_stop_tokens(folder: Path, model: Any) -> frozenset[int]:
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    said = model.config.text_config.eos_token_id if said is None else said
    return frozenset(said if isinstance(said, list) else [] if said is None else [said])


def refuse_too_large(model: Any, weight_layout: WeightLayout) -> None:
    """Before a weight is read: a model that the device cannot hold says how many would."""
    now = weight_layout.tp.size
    sizes = [
        now,
        *(
            size
            for size in shard.list_tp_sizes(model.config.text_config, group_sizes=weight_layout.group_sizes)
            if size > now
        ),
    ]
    needs = {size: estimate_weight_bytes(model, replace(weight_layout, tp=TensorParallel(0, size))) for size in sizes}
    if weight_layout.device.type != "cuda":
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needs[now] * now > there:
            said = f"{needs[now] * now / GB:.1f} GB for its weights and this machine has {there / GB:.1f}"
            raise JobError(f"model.weights: the model needs {said}; `model.quantize: int4` or a smaller model may fit")
        return
    free = measure_free_cuda_bytes(weight_layout.device)
    if needs[now] <= free:
        return
    enough = next((size for size in sizes if needs[size] <= free), None)
    advice = (
        f"with model.tensor_parallel: {enough} and workers.generate.gpus: {enough} it needs {needs[enough] / GB:.1f}"
        if enough
        else "no number of them that it can be divided among is enough: `model.quantize: int4`, or a smaller model"
    )
    raise JobError(
        f"model.weights: on each of {now} GPU(s) the model needs {needs[now] / GB:.1f} GB for its weights and "
        f"{free / GB:.1f} are free; {advice}"
    )


def estimate_weight_bytes(model: Any, weight_layout: WeightLayout) -> int:
    """What a rank's share of the weights takes, by the shapes of a model without memory."""
    text, item, total = model.config.text_config, weight_layout.dtype.itemsize, 0.0
    for name, param in model.named_parameters():
        part = shard.assign_shard(name, text, weight_layout.tp, group_sizes=weight_layout.group_sizes)
        share = (part.span[1] - part.span[0]) / param.shape[part.dim] if part else 1.0
        group = (
            shard.find_group_size(param.shape[-1], weight_layout.group_sizes)
            if param.dim() > 1 and ".layers." in name
            else 1
        )
        total += share * param.numel() * (item if group == 1 else 0.5 + 2 * item / group)
    return int(total)
