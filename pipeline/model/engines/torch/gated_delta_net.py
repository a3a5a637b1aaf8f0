"""Gated DeltaNet over packed sequences: a convolution, then the gated delta rule, each sequence from its own state.

    S = exp(decay) * S;  S = S + k (beta * (v - k S));  output = q S          for each token and head

A sequence of one token is one such update. The tokens of longer ones are computed in chunks: within a chunk, one
triangular system gives what all its tokens write, and the chunks of a sequence follow each other. The chunks of
different sequences share the products, as many as a group has. Everything after the convolution is computed in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.engines.torch.kv_cache import PackedBatch
from pipeline.model.engines.torch.linear_state import ChunkGroup, ChunkLayout, StateShape

HeadInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # query, key, value, decay, beta


def use_packed_states(language_model: Any) -> StateShape | None:
    """Let the linear-attention layers of transformers' model compute packed sequences; None where it has none."""
    layers = [layer for layer in language_model.layers if hasattr(layer, "linear_attn")]
    if not layers:
        return None
    for number, layer in enumerate(layers):
        layer.linear_attn.layer_idx = number  # among the layers that have a state
        layer.linear_attn.forward = partial(forward_packed, layer.linear_attn)
    for number, layer in enumerate(layer for layer in language_model.layers if hasattr(layer, "self_attn")):
        layer.self_attn.layer_idx = number  # among the layers that have keys and values
    module = layers[0].linear_attn
    width, _, kernel = module.conv1d.weight.shape
    return StateShape(len(layers), len(module.A_log), module.head_k_dim, module.head_v_dim, width, kernel - 1)


def forward_packed(module: Any, hidden_states: Tensor, *, packed: PackedBatch, **_: Any) -> Tensor:
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
        updated = matrices.index_select(0, layout.single_read_rows)
        outputs[:single] = update_states(*split_heads(module, convolved, decay[:single], beta[:single]), updated)
        matrices.index_copy_(0, layout.single_write_rows, updated)
    if layout.chunks is not None:
        convolved = convolve_sequences(module, mixed[single:], kept, layout.chunks)
        updated = matrices.index_select(0, layout.chunks.read_rows)
        for group in layout.chunks.groups:
            chosen = group.token_indices
            parts = (part.index_select(0, chosen) for part in (convolved, decay[single:], beta[single:]))
            output = compute_chunks(*split_heads(module, *parts), updated, group)
            outputs[single:].index_copy_(0, group.output_indices, output.to(outputs.dtype))
        matrices.index_copy_(0, layout.chunks.write_rows, updated)
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


def split_heads(module: Any, convolved: Tensor, decay: Tensor, beta: Tensor) -> HeadInputs:
    """[tokens, heads, dim] and [tokens, heads] in float32; queries and keys have length 1, queries are scaled."""
    value_heads = decay.shape[1]
    key_width = (convolved.shape[1] - value_heads * module.head_v_dim) // 2
    widths = [key_width, key_width, value_heads * module.head_v_dim]
    query, key, value = torch.split(convolved.float(), widths, 1)
    query, key = (normalize(part.reshape(len(convolved), -1, module.head_k_dim)) for part in (query, key))
    repeats = value_heads // key.shape[1]
    query, key = (part.repeat_interleave(repeats, 1) for part in (query * module.head_k_dim**-0.5, key))
    return query, key, value.reshape(len(convolved), value_heads, -1), decay, beta


def normalize(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)


def update_states(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, states: Tensor) -> Tensor:
    """One token of each sequence: outputs [sequences, heads, value dim]. The states are updated in place."""
    states.mul_(decay.exp()[..., None, None])
    written = (value - (key[..., None, :] @ states)[..., 0, :]) * beta[..., None]
    states.addcmul_(key[..., None], written[..., None, :])
    return (query[..., None, :] @ states)[..., 0, :]


def compute_chunks(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, states: Tensor, group: ChunkGroup
) -> Tensor:
    """Outputs [tokens, heads, value dim] of a group, padding included. The states are updated in place."""
    size = group.is_padding.shape[-1]

    def cut(part: Tensor) -> Tensor:
        """[tokens, heads, ...] -> [chunks, heads, chunk size, ...]"""
        return part.view(-1, size, *part.shape[1:]).transpose(1, 2)

    query, key, value = cut(query), cut(key), cut(value)
    total_decay = cut(decay).masked_fill(group.is_padding, 0).cumsum(-1)
    weight = cut(beta).masked_fill(group.is_padding, 0)[..., None]
    is_later = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
    pair_decay = (total_decay[..., None] - total_decay[..., None, :]).masked_fill(is_later, float("-inf")).exp()
    since_start = total_decay.exp()[..., None]
    until_end = (total_decay[..., -1:] - total_decay).exp()[..., None]
    overlap = weight * (key @ key.mT) * pair_decay
    wanted = torch.cat([weight * value, weight * key * since_start], -1)
    solved = torch.linalg.solve_triangular(overlap, wanted, upper=False, unitriangular=True)
    new_values, state_reads = torch.split(solved, [value.shape[-1], key.shape[-1]], -1)
    attention = (query @ key.mT) * pair_decay
    del overlap, wanted, pair_decay  # the largest tensors: their memory is used again
    query, key = query * since_start, (key * until_end).mT
    outputs, first = torch.empty_like(new_values), 0
    for sequence, count in group.runs:
        now, state = slice(first, first + count), states[sequence : sequence + count]
        written = new_values[now] - state_reads[now] @ state
        outputs[now] = query[now] @ state + attention[now] @ written
        state.mul_(since_start[now, :, -1:]).add_(key[now] @ written)
        first += count
    return outputs.transpose(1, 2).flatten(0, 1)
