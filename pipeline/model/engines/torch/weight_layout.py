"""What a rank holds of a model's weights, and whether that fits its device."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.memory import GB, measure_free_cuda_bytes
from pipeline.model.engines.torch.shard import TensorParallel, WeightShard
from pipeline.model.families.model_architecture import ModelArchitecture


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Which part of the weights a rank holds, in which type and on which device."""

    architecture: ModelArchitecture
    tp: TensorParallel
    dtype: torch.dtype
    device: torch.device
    group_sizes: tuple[int, ...] = ()  # that four-bit weights may have; empty where all weights are dense
    quantize_dense: bool = False  # round dense weights to four bits

    def assign_shard(self, name: str, text_config: Any) -> WeightShard | None:
        """The part of a weight, by its name in the model; None is all of it."""
        rule = self.architecture.get_shard_rule(name)
        if self.tp.size == 1 or rule is None or (rule.dim == 1 and name.endswith(".bias")):
            return None
        return WeightShard(rule.dim, shard.compute_unit_span(rule.unit, text_config, self.tp, self.group_sizes))


def refuse_too_large(model: Any, layout: WeightLayout) -> None:
    """A JobError, before any weight is read, where the device cannot hold the model."""
    if layout.device.type == "cuda":
        refuse_too_large_for_gpu(model, layout)
        return
    needed = estimate_weight_bytes(model, layout) * layout.tp.size  # all ranks share this machine
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise JobError(
            f"model.weights: the model needs {needed / GB:.1f} GB for its weights and this machine has "
            f"{memory / GB:.1f}; `model.quantize: int4` or a smaller model may fit"
        )


def refuse_too_large_for_gpu(model: Any, layout: WeightLayout) -> None:
    """The error says how many GPUs would hold the model."""
    free, needed = measure_free_cuda_bytes(layout.device), estimate_weight_bytes(model, layout)
    if needed <= free:
        return
    problem = (
        f"model.weights: on each of {layout.tp.size} GPU(s) the model needs {needed / GB:.1f} GB for its weights and "
        f"{free / GB:.1f} are free; "
    )
    for size in shard.list_tp_sizes(model.config.get_text_config(), group_sizes=layout.group_sizes):
        share = estimate_weight_bytes(model, replace(layout, tp=TensorParallel(0, size)))
        if size > layout.tp.size and share <= free:
            advice = f"with model.tensor_parallel: {size} and workers.generate.gpus: {size} it needs {share / GB:.1f}"
            raise JobError(problem + advice)
    advice = "no number of GPUs that the model can be divided among is enough: set model.quantize: int4, or take a "
    raise JobError(f"{problem}{advice}smaller model")


def estimate_weight_bytes(model: Any, layout: WeightLayout) -> int:
    """The bytes of a rank's share, from the shapes of a model without memory."""
    text_config, item_bytes, total = model.config.get_text_config(), layout.dtype.itemsize, 0.0
    for name, param in model.named_parameters():
        part = layout.assign_shard(name, text_config)
        share = (part.span[1] - part.span[0]) / param.shape[part.dim] if part else 1.0
        group_size = 1
        if param.dim() > 1 and layout.architecture.is_text_layer(name):
            group_size = shard.find_group_size(param.shape[-1], layout.group_sizes)
        weight_bytes = item_bytes if group_size == 1 else 0.5 + 2 * item_bytes / group_size  # with scale and zero
        total += share * param.numel() * weight_bytes
    return int(total)
