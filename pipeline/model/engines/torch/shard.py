"""A rank of a replica -> which part of each weight it holds. All pure.

    column   outputs are divided: q, k, v, gate, up; embeddings and head by vocabulary
    row      inputs are divided: o, down; what each rank makes is a summand of the whole
    expert   whole experts: a mixture is divided by expert, not inside one

Attention is divided by heads, so that a rank's heads find their keys on the same rank. With fewer
key heads than ranks, neighbours hold the same one. Norms, a mixture's router and the vision tower
are on every rank: a few per cent of the weights; the tower's work is divided by pictures instead.
Cuts of four-bit weights fall between groups, so a share has exactly the weights of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import JobError


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """One of how many."""

    rank: int = 0
    size: int = 1


SINGLE_RANK = TensorParallel()
ROW_SHARDED = ("o_proj", "down_proj")  # divided by row
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class WeightShard:
    """What of a weight is held: this span of one of its dimensions."""

    dim: int
    span: Span


def compute_span(count: int, tp: TensorParallel, *, unit_size: int = 1) -> Span:
    """This rank's share of so many, in whole units, as even as they allow.

    >>> [span(10, Place(rank, 4)) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    >>> [span(384, Place(rank, 2), unit=128) for rank in range(2)]
    [(0, 128), (128, 384)]
    """
    units = count // unit_size
    return units * tp.rank // tp.size * unit_size, units * (tp.rank + 1) // tp.size * unit_size


def get_head_dim(text_config: Any) -> int:
    return int(getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads)


def assign_key_heads(text_config: Any, tp: TensorParallel) -> Span:
    """Every rank has at least one; where there are fewer than ranks, several have the same."""
    if text_config.num_key_value_heads >= tp.size:
        return compute_span(text_config.num_key_value_heads, tp)
    head = text_config.num_key_value_heads * tp.rank // tp.size
    return head, head + 1


def find_group_size(in_features: int, group_sizes: Sequence[int]) -> int:
    """How many inputs of a four-bit layer stand together; 1 where its weights are dense."""
    return next((group for group in group_sizes if in_features % group == 0), 1)


def assign_shard(
    name: str, text_config: Any, tp: TensorParallel, *, group_sizes: Sequence[int] = ()
) -> WeightShard | None:
    """Of a weight, by its name in the model; None is all of it. `groups` are sizes that four-bit weights come in."""
    *_, owner, kind = name.split(".")
    if tp.size == 1 or ".visual." in name:
        return None
    if owner == "experts":
        return WeightShard(0, compute_span(text_config.num_experts, tp))
    if owner in ("embed_tokens", "lm_head"):
        return WeightShard(0, compute_span(text_config.vocab_size, tp))
    if owner in ("gate_proj", "up_proj", "down_proj"):
        within = compute_span(
            text_config.intermediate_size, tp, unit_size=find_group_size(text_config.intermediate_size, group_sizes)
        )
    elif owner in ("q_proj", "o_proj", "k_proj", "v_proj"):
        heads = (
            assign_key_heads(text_config, tp)
            if owner in ("k_proj", "v_proj")
            else compute_span(text_config.num_attention_heads, tp)
        )
        within = heads[0] * get_head_dim(text_config), heads[1] * get_head_dim(text_config)
    else:
        return None
    if owner in ROW_SHARDED:
        return None if kind == "bias" else WeightShard(1, within)
    return WeightShard(0, within)


def find_problems(text_config: Any, tp_size: int, *, group_sizes: Sequence[int] = ()) -> list[str]:
    """Why this model cannot be divided among so many ranks, if it cannot."""
    heads, keys, experts = (
        text_config.num_attention_heads,
        text_config.num_key_value_heads,
        getattr(text_config, "num_experts", tp_size),
    )
    pieces = text_config.intermediate_size // find_group_size(text_config.intermediate_size, group_sizes)
    attention = find_group_size(heads * get_head_dim(text_config), group_sizes)
    out = []
    if heads % tp_size:
        out.append(f"{heads} attention heads are not divisible by {tp_size}")
    if keys % tp_size and tp_size % keys:
        out.append(f"{keys} key-value heads can neither be divided by {tp_size} nor repeated evenly")
    if text_config.vocab_size % tp_size:
        out.append(f"a vocabulary of {text_config.vocab_size:,} is not divisible by {tp_size}")
    if min(experts, pieces) < tp_size:
        out.append(f"{min(experts, pieces)} experts or groups of weights cannot be divided by {tp_size}")
    if tp_size > 1 and heads // tp_size * get_head_dim(text_config) % attention:
        out.append(
            f"{heads}/{tp_size} heads of {get_head_dim(text_config)} do not end between groups of {attention} weights"
        )
    return out


def list_tp_sizes(text_config: Any, *, group_sizes: Sequence[int] = (), max_size: int = 16) -> list[int]:
    """The numbers of ranks that this model can be divided among."""
    return [size for size in range(1, max_size + 1) if not find_problems(text_config, size, group_sizes=group_sizes)]


def check_tp_size(text_config: Any, tp_size: int, *, group_sizes: Sequence[int] = ()) -> None:
    """A JobError that says which numbers would do."""
    if wrong := find_problems(text_config, tp_size, group_sizes=group_sizes):
        fitting = ", ".join(map(str, list_tp_sizes(text_config, group_sizes=group_sizes)))
        raise JobError(f"model.tensor_parallel: {tp_size} does not work: {'; '.join(wrong)}. Possible: {fitting}")
