"""Computes the gated delta rule with the kernels of fla-core (an extra), where it is installed and the device is CUDA.

The kernels read a state and write the next one beside it, so a step that is repeated starts from the same state. They
compute in the type of the model, with states in float32, and take a float32 model nowhere: its answers stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from pipeline.model.engines.torch.gated_delta_net import split_heads
from pipeline.model.engines.torch.linear_state import ChunkLayout
from pipeline.model.engines.torch.memory import MAX_CHUNK_SIZE

Kernel = Callable[..., tuple[Tensor, Tensor]]


def load_kernels(device: torch.device, dtype: torch.dtype) -> FlaRule | None:
    if device.type != "cuda" or dtype == torch.float32 or find_spec("fla") is None:
        return None
    from fla.ops import gated_delta_rule

    return FlaRule(gated_delta_rule.chunk_gated_delta_rule, gated_delta_rule.fused_recurrent_gated_delta_rule)


@dataclass(frozen=True, slots=True)
class FlaRule:
    chunk_kernel: Kernel
    recurrent_kernel: Kernel

    def update_states(
        self, module: Any, convolved: Tensor, decay: Tensor, beta: Tensor, states: Tensor, outputs: Tensor
    ) -> Tensor:
        """A batch of sequences of one token."""
        query, key, value, beta = (
            part[:, None] for part in (*split_heads(module, convolved), beta.to(convolved.dtype))
        )
        result, states = self.recurrent_kernel(
            query,
            key,
            value,
            g=decay[:, None],
            beta=beta,
            initial_state=states,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        outputs.copy_(result[:, 0])
        return states

    def compute_sequences(
        self,
        module: Any,
        convolved: Tensor,
        decay: Tensor,
        beta: Tensor,
        states: Tensor,
        chunks: ChunkLayout,
        outputs: Tensor,
    ) -> Tensor:
        """A batch of one row, in which the sequences lie end to end."""
        query, key, value = (part[None] for part in split_heads(module, convolved))
        result, states = self.chunk_kernel(
            query,
            key,
            value,
            decay[None],
            beta.to(convolved.dtype)[None],
            initial_state=states,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=chunks.sequence_offsets,
            chunk_indices=chunks.chunk_numbers,  # computed on the device, they would make the host wait
            chunk_size=MAX_CHUNK_SIZE,
        )
        outputs[:-1].copy_(result[0])
        return states
