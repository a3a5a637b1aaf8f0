"""Gated DeltaNet over packed sequences: a convolution, then the gated delta rule, each sequence from its own state.

    S = exp(decay) * S;  S = S + k (beta * (v - k S));  output = q S          for each token and head

A sequence of one token is one such update. The tokens of longer ones are computed in chunks: within a chunk, one
triangular system gives what all its tokens write, and the chunks of a sequence follow each other. The chunks of
different sequences share the products, as many as a group has. Everything after the convolution is computed in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.engines.torch.kv_cache import PackedBatch
from pipeline.model.engines.torch.linear_state import ChunkGroup, ChunkLayout, StateShape

# query, key, value: [chunks, heads, chunk size, dim]; decay, beta: [chunks, heads, chunk size]
ChunkInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class DeltaRule(Protocol):
    """Computes the rule for the tokens of a step, from the convolution's outputs of these tokens.

    Both functions write the outputs, which have one row more in the second, and return the states after the step.
    They may change those that they get, which are copies.
    """

    def update_states(
        self, module: Any, convolved: Tensor, decay: Tensor, beta: Tensor, states: Tensor, outputs: Tensor
    ) -> Tensor: ...

    def compute_sequences(
        self,
        module: Any,
        convolved: Tensor,
        decay: Tensor,
        beta: Tensor,
        states: Tensor,
        chunks: ChunkLayout,
        outputs: Tensor,
    ) -> Tensor: ...


def use_packed_states(language_model: Any, kernels: DeltaRule | None = None) -> StateShape | None:
    """Let the linear-attention layers of transformers' model compute packed sequences; None where it has none."""
    layers = [layer for layer in language_model.layers if hasattr(layer, "linear_attn")]
    if not layers:
        return None
    for number, layer in enumerate(layers):
        layer.linear_attn.layer_idx = number  # among the layers that have a state
        layer.linear_attn.forward = partial(forward_packed, layer.linear_attn, kernels or TorchRule())
    for number, layer in enumerate(layer for layer in language_model.layers if hasattr(layer, "self_attn")):
        layer.self_attn.layer_idx = number  # among the layers that have keys and values
    module = layers[0].linear_attn
    width, _, kernel = module.conv1d.weight.shape
    return StateShape(
        len(layers),
        len(module.A_log),
        module.head_k_dim,
        module.head_v_dim,
        width,
        kernel - 1,
        has_kernels=kernels is not None,
    )


def forward_packed(module: Any, rule: DeltaRule, hidden_states: Tensor, *, packed: PackedBatch, **_: Any) -> Tensor:
    """In place of the module's own: [1, tokens, width] -> [1, tokens, width]."""
    tokens = hidden_states[0]
    mixed, gate = module.in_proj_qkv(tokens), module.in_proj_z(tokens)
    beta = module.in_proj_b(tokens).float().sigmoid()
    decay = -module.A_log.float().exp() * functional.softplus(module.in_proj_a(tokens).float() + module.dt_bias)
    states, layout = packed.states, packed.state_layout
    assert states is not None
    assert layout is not None
    matrices, kept = states.matrices[module.layer_idx], states.inputs[module.layer_idx]
    single = len(layout.single_read_rows)
    outputs = tokens.new_empty(len(tokens) + 1, len(module.A_log), module.head_v_dim)  # the last takes padding's
    if single:
        convolved = convolve_singles(module, mixed[:single], kept, layout.single_read_rows, layout.single_write_rows)
        before = matrices.index_select(0, layout.single_read_rows)
        after = rule.update_states(module, convolved, decay[:single], beta[:single], before, outputs[:single])
        matrices.index_copy_(0, layout.single_write_rows, after)
    if (chunks := layout.chunks) is not None:
        convolved = convolve_sequences(module, mixed[single:], kept, chunks)
        before = matrices.index_select(0, chunks.read_rows)
        after = rule.compute_sequences(
            module, convolved, decay[single:], beta[single:], before, chunks, outputs[single:]
        )
        matrices.index_copy_(0, chunks.write_rows, after)
    normed = module.norm(outputs[:-1].flatten(0, 1), gate.reshape(-1, module.head_v_dim))
    return module.out_proj(normed.view(len(tokens), -1))[None]  # type: ignore[no-any-return]


def convolve_singles(module: Any, mixed: Tensor, kept: Tensor, read_rows: Tensor, write_rows: Tensor) -> Tensor:
    """The newest input of each sequence: [sequences, width] -> [sequences, width]."""
    window = torch.cat([kept.index_select(0, read_rows), mixed[:, None]], 1)
    kept.index_copy_(0, write_rows, window[:, 1:])
    summed = (window.float() * module.conv1d.weight[:, 0].T.float()).sum(1)
    return functional.silu(summed.to(mixed.dtype))


def convolve_sequences(module: Any, mixed: Tensor, kept: Tensor, chunks: ChunkLayout) -> Tensor:
    """[tokens, width] -> [tokens, width]; each sequence after the inputs that were kept of it."""
    inputs = torch.cat([kept.index_select(0, chunks.read_rows).flatten(0, 1), mixed])
    kept.index_copy_(0, chunks.write_rows, inputs.index_select(0, chunks.kept_indices).view(-1, *kept.shape[1:]))
    window = inputs.index_select(0, chunks.window_indices).T[None]
    convolved = functional.conv1d(window, module.conv1d.weight, groups=len(module.conv1d.weight))
    return functional.silu(convolved[0].T.index_select(0, chunks.convolved_indices))


class TorchRule:
    """Everything in float32, for any device."""

    def update_states(
        self, module: Any, convolved: Tensor, decay: Tensor, beta: Tensor, states: Tensor, outputs: Tensor
    ) -> Tensor:
        outputs.copy_(update_states(*build_chunks(module, convolved, decay, beta), states)[:, :, 0])
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
        for group in chunks.groups:
            parts = (part.index_select(0, group.token_indices) for part in (convolved, decay, beta))
            inputs = build_chunks(module, *parts, size=group.is_padding.shape[-1])
            output = compute_chunks(*inputs, states, group).transpose(1, 2).flatten(0, 1)
            outputs.index_copy_(0, group.output_indices, output.to(outputs.dtype))
        return states


def split_heads(module: Any, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys [tokens, key heads, key dim] and values [tokens, heads, value dim]."""
    value_width = len(module.A_log) * module.head_v_dim
    key_width = (convolved.shape[1] - value_width) // 2
    query, key, value = torch.split(convolved, [key_width, key_width, value_width], 1)
    query, key = (part.view(len(part), -1, module.head_k_dim) for part in (query, key))
    return query, key, value.view(len(value), -1, module.head_v_dim)


def build_chunks(module: Any, convolved: Tensor, decay: Tensor, beta: Tensor, *, size: int = 1) -> ChunkInputs:
    """Tokens to chunks of `size`, in float32; queries and keys have length 1, queries are scaled."""
    query, key, value = split_heads(module, convolved.float())
    query, key, value, decay, beta = (
        part.view(-1, size, *part.shape[1:]).transpose(1, 2)
        for part in (normalize(query) * module.head_k_dim**-0.5, normalize(key), value, decay, beta)
    )
    repeats = value.shape[1] // key.shape[1]
    return query.repeat_interleave(repeats, 1), key.repeat_interleave(repeats, 1), value, decay, beta


def normalize(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)


def update_states(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, states: Tensor) -> Tensor:
    """Outputs [sequences, heads, 1, value dim] of chunks of one token. The states are updated in place."""
    states.mul_(decay.exp()[..., None])
    written = (value - key @ states) * beta[..., None]
    states.addcmul_(key.mT, written)
    return query @ states


def compute_chunks(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, states: Tensor, group: ChunkGroup
) -> Tensor:
    """Outputs [chunks, heads, chunk size, value dim] of a group. The states are updated in place."""
    heads, size = decay.shape[1:]
    total_decay = decay.masked_fill(group.is_padding, 0).cumsum(-1)
    weight = beta.masked_fill(group.is_padding, 0)[..., None]
    is_later = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
    pair_decay = (total_decay[..., None] - total_decay[..., None, :]).masked_fill(is_later, float("-inf")).exp()
    since_start = total_decay.exp()[..., None]
    until_end = (total_decay[..., -1:] - total_decay).exp()[..., None]
    overlap = weight * (key @ key.mT) * pair_decay
    wanted = torch.cat([weight * value, weight * key * since_start], -1)
    solved = torch.linalg.solve_triangular(overlap, wanted, upper=False, unitriangular=True)
    attention = ((query @ key.mT) * pair_decay).flatten(0, 1)
    del overlap, wanted, pair_decay  # the largest tensors: their memory is used again
    written, state_reads = torch.split(solved.flatten(0, 1), [value.shape[-1], key.shape[-1]], -1)
    query, key = (query * since_start).flatten(0, 1), (key * until_end).flatten(0, 1).mT
    chunk_decay = since_start[:, :, -1:].flatten(0, 1)
    outputs, flat_states, first = query.new_empty(written.shape), states.view(-1, *states.shape[2:]), 0
    for sequence, count in group.runs:  # thousands in a prefill, so what can be computed for all of them is
        now, state = slice(first, first + count * heads), flat_states[sequence * heads : (sequence + count) * heads]
        written[now].baddbmm_(state_reads[now], state, alpha=-1)
        torch.bmm(query[now], state, out=outputs[now])
        state.mul_(chunk_decay[now]).baddbmm_(key[now], written[now])
        first += count * heads
    return outputs.baddbmm_(attention, written).view(-1, heads, size, value.shape[-1])
