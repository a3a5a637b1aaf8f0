"""The experts of a mixture on CUDA, computed without the host waiting for the choice of the router.

Few tokens go through all experts as if they were one wide layer, with a weight of zero for those that were not chosen:
two matrix products that read every expert once, which a batch that decodes does anyway. Many tokens are sorted by
expert, as transformers does it. There the host waits for the counts of each expert where torch has no grouped matrix
product of its own, so such a pass cannot be captured as a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model import hf_models
from pipeline.model.engines.torch.int4_linear import MAX_KERNEL_ROWS, Int4Linear, round_to_nibbles

EXPERTS_NAME = "all_experts"
MAX_WIDE_ROWS = 512  # above it the products with experts that were not chosen take longer than reading the weights
GROUPED_MM_CAPABILITIES = ((9, 0), (10, 0))


def sort_by_expert(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    hf_models.import_transformers()
    from transformers.integrations.moe import grouped_mm_experts_forward

    return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)


def use_all_experts(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Choose this module for a dense mixture where torch's grouped matrix product would make the host wait."""
    is_native = dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) in GROUPED_MM_CAPABILITIES
    if is_native:
        return
    hf_models.import_transformers()
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, compute_all_experts)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = EXPERTS_NAME


def compute_all_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts interface of transformers: [tokens, width] -> [tokens, width]."""
    if len(hidden_states) > MAX_WIDE_ROWS:
        return sort_by_expert(experts, hidden_states, top_k_index, top_k_weights)
    gate_up = functional.linear(hidden_states, experts.gate_up_proj.flatten(0, 1))
    inner = apply_router(experts, gate_up, top_k_index, top_k_weights)
    return torch.bmm(inner.transpose(0, 1), experts.down_proj.transpose(1, 2)).sum(0)


def apply_router(experts: Any, gate_up: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """[tokens, experts * 2 * inner] -> [tokens, experts, inner], zero for experts that were not chosen."""
    tokens, count = len(gate_up), experts.num_experts
    weights = gate_up.new_zeros(tokens, count + 1)  # the last column is for experts of other ranks
    weights.scatter_(1, top_k_index, top_k_weights.to(gate_up.dtype))
    gate, up = gate_up.view(tokens, count, -1).chunk(2, -1)
    inner: Tensor = experts.act_fn(gate) * up * weights[:, :count, None]
    return inner


class WideInt4Experts(nn.Module):
    """All experts of a layer as two four-bit layers."""

    has_gate, has_bias, has_post_expert_norm, is_transposed = True, False, False, False  # for `sort_by_expert`
    _is_expert_parallel = False

    def __init__(self, dense: Any, *, device: torch.device):
        super().__init__()
        self.act_fn, self.num_experts = dense.act_fn, len(dense.down_proj)
        self.gate_up = quantize_side_by_side(dense.gate_up_proj, dim=0, device=device)
        self.down = quantize_side_by_side(dense.down_proj, dim=1, device=device)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if len(hidden_states) > MAX_KERNEL_ROWS["cuda"]:
            return sort_by_expert(self, hidden_states, top_k_index, top_k_weights)
        inner = apply_router(self, self.gate_up(hidden_states), top_k_index, top_k_weights)
        return self.down(inner.flatten(1))  # type: ignore[no-any-return]

    @property
    def gate_up_proj(self) -> Tensor:
        dense = self.gate_up.dequantize(self.gate_up.scales_zeros.dtype)
        return dense.view(self.num_experts, -1, dense.shape[1])

    @property
    def down_proj(self) -> Tensor:
        dense = self.down.dequantize(self.down.scales_zeros.dtype)
        return dense.view(len(dense), self.num_experts, -1).transpose(0, 1).contiguous()

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.act_fn(gate) * up  # type: ignore[no-any-return]


def quantize_side_by_side(weights: Tensor, *, dim: int, device: torch.device) -> Int4Linear:
    """Expert by expert, which bounds the memory."""
    parts = [round_to_nibbles(weight.detach().to(device)) for weight in weights]
    nibbles, scales, zeros = (torch.cat(tensors, dim) for tensors in zip(*parts, strict=True))
    return Int4Linear(nibbles, scales, zeros, None)
