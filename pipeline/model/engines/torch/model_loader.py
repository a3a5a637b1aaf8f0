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
from pipeline.model import hf_models, weights
from pipeline.model.engines.torch import attention, int4, shard
from pipeline.model.engines.torch.checkpoint import Weights
from pipeline.model.engines.torch.int4_linear import DTYPE
from pipeline.model.engines.torch.loaded_model import Form, Loaded
from pipeline.model.engines.torch.memory import GB, cuda_bytes
from pipeline.model.engines.torch.shard import ALONE, Place

HEAD = "lm_head.weight"


def load(
    folder: Path,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    place: Place = ALONE,
) -> Loaded:
    """`config` is config.json with what a job changes in it."""
    said = config or weights.config(folder)
    model = build(folder, said, dtype=dtype, device=torch.device(device), quantize=quantize, place=place)
    hf_models.transformers().AttentionInterface.register(attention.NAME, attention.attend)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.NAME
    tower, text = model.model.visual, model.config.text_config
    flatten_patches(tower.patch_embed)
    first, last = shard.key_heads(text, place)
    shape = text.num_hidden_layers, last - first, shard.head_dim(text)
    return Loaded(tower, model.model.language_model, model.lm_head, stop_tokens(folder, model), shape, text.vocab_size)


def build(
    folder: Path,
    said: Mapping[str, Any],
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    place: Place = ALONE,
) -> Any:
    """The model class with its weights, as transformers has it but for four-bit layers."""
    device = torch.device(device)
    config, groups = understand(said, size=place.size, quantize=quantize)
    config._attn_implementation = "sdpa"
    with without_weights():
        model = hf_models.model_class(said["model_type"])(config)
    files = Weights(folder)
    chosen = choose_dtype(dtype, config, files, four_bit=bool(groups), device=device)
    form = Form(place, chosen, device, groups, rounds=bool(quantize))
    refuse_too_large(model, form)
    fill(model, files, form)
    return model.eval().requires_grad_(False).to(device)


def understand(said: Mapping[str, Any], *, size: int, quantize: str | None) -> tuple[Any, tuple[int, ...]]:
    """A config.json as transformers has it, and the sizes of groups of four-bit weights; a JobError if it cannot be."""
    groups = int4.groups(said, quantize)
    config = hf_models.config_class(said["model_type"]).from_dict(
        {key: value for key, value in said.items() if key != "quantization_config"}
    )
    shard.refuse(config.text_config, size, groups=groups)
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


def choose_dtype(said: str, config: Any, files: Weights, *, four_bit: bool, device: torch.device) -> torch.dtype:
    """The job's, else the checkpoint's. Most CPUs only imitate float16, at a quarter of the speed of float32."""
    if said != "auto":
        return getattr(torch, said)  # type: ignore[no-any-return]
    own: torch.dtype = DTYPE if four_bit else config.dtype or config.text_config.dtype or files.dtype()
    return torch.float32 if device.type == "cpu" and own == torch.float16 else own


def fill(model: Any, files: Weights, form: Form) -> None:
    """Every parameter gets its weight, or its part of it."""
    text = model.config.text_config
    tied = model.config.tie_word_embeddings or (HEAD not in files and getattr(text, "tie_word_embeddings", False))
    lacking = [name for name, _ in model.named_parameters() if not there(name, files) and not (tied and name == HEAD)]
    if lacking:
        raise JobError(
            f"model.weights: {files.folder} lacks {len(lacking)} of the model's weights: {', '.join(lacking[:3])}, ..."
        )
    for name, module in list(model.named_modules()):
        whole = {own: tuple(param.shape) for own, param in module.named_parameters(recurse=False)}
        parts = {own: shard.part(f"{name}.{own}", text, form.place, groups=form.groups) for own in whole}
        for own, shape in whole.items():
            if (full := f"{name}.{own}") not in files:
                continue
            weight = files.read(full, parts[own], shape=shape).to(form.device, form.dtype)
            if own == "bias" and form.place.rank and name.endswith(shard.ROWS):
                weight.zero_()  # summands: it counts once
            setattr(module, own, nn.Parameter(weight, requires_grad=False))
        made = None
        if f"{name}.qweight" in files:
            made = int4.awq(files, name, parts["weight"], module.bias, dtype=form.dtype, device=form.device)
        elif form.rounds and whole:
            group = shard.unit(next(iter(whole.values()))[-1], form.groups)
            made = int4.round_layer(name, module, group=group, device=form.device)
        if made is not None:
            model.set_submodule(name, made)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight


def there(name: str, files: Container[str]) -> bool:
    return name in files or (name.endswith(".weight") and f"{name.removesuffix('.weight')}.qweight" in files)


def flatten_patches(embed: Any) -> None:
    """A convolution whose kernel is the whole patch is a matrix product, and many times faster as one."""
    kernel = embed.proj.weight.flatten(1)
    embed.forward = lambda patches: linear(patches.to(kernel.dtype), kernel, embed.proj.bias)


def stop_tokens(folder: Path, model: Any) -> frozenset[int]:
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    said = model.config.text_config.eos_token_id if said is None else said
    return frozenset(said if isinstance(said, list) else [] if said is None else [said])


def refuse_too_large(model: Any, form: Form) -> None:
    """Before a weight is read: a model that the device cannot hold says how many would."""
    now = form.place.size
    sizes = [now, *(size for size in shard.possible(model.config.text_config, groups=form.groups) if size > now)]
    needs = {size: held_bytes(model, replace(form, place=Place(0, size))) for size in sizes}
    if form.device.type != "cuda":
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needs[now] * now > there:
            said = f"{needs[now] * now / GB:.1f} GB for its weights and this machine has {there / GB:.1f}"
            raise JobError(f"model.weights: the model needs {said}; `model.quantize: int4` or a smaller model may fit")
        return
    free = cuda_bytes(form.device)
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


def held_bytes(model: Any, form: Form) -> int:
    """What a rank's share of the weights takes, by the shapes of a model without memory."""
    text, item, total = model.config.text_config, form.dtype.itemsize, 0.0
    for name, param in model.named_parameters():
        part = shard.part(name, text, form.place, groups=form.groups)
        share = (part.span[1] - part.span[0]) / param.shape[part.dim] if part else 1.0
        group = shard.unit(param.shape[-1], form.groups) if param.dim() > 1 and ".layers." in name else 1
        total += share * param.numel() * (item if group == 1 else 0.5 + 2 * item / group)
    return int(total)
