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
class Place:
    """One of how many."""

    rank: int = 0
    size: int = 1


ALONE = Place()
ROWS = ("o_proj", "down_proj")  # divided by row
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """What of a weight is held: this span of one of its dimensions."""

    dim: int
    span: Span


def span(count: int, place: Place, *, unit: int = 1) -> Span:
    """This rank's share of so many, in whole units, as even as they allow.

    >>> [span(10, Place(rank, 4)) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    >>> [span(384, Place(rank, 2), unit=128) for rank in range(2)]
    [(0, 128), (128, 384)]
    """
    units = count // unit
    return units * place.rank // place.size * unit, units * (place.rank + 1) // place.size * unit


def head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def key_heads(text: Any, place: Place) -> Span:
    """Every rank has at least one; where there are fewer than ranks, several have the same."""
    if text.num_key_value_heads >= place.size:
        return span(text.num_key_value_heads, place)
    head = text.num_key_value_heads * place.rank // place.size
    return head, head + 1


def unit(inputs: int, groups: Sequence[int]) -> int:
    """How many inputs of a four-bit layer stand together; 1 where its weights are dense."""
    return next((group for group in groups if inputs % group == 0), 1)


def part(name: str, text: Any, place: Place, *, groups: Sequence[int] = ()) -> Part | None:
    """Of a weight, by its name in the model; None is all of it. `groups` are sizes that four-bit weights come in."""
    *_, owner, kind = name.split(".")
    if place.size == 1 or ".visual." in name:
        return None
    if owner == "experts":
        return Part(0, span(text.num_experts, place))
    if owner in ("embed_tokens", "lm_head"):
        return Part(0, span(text.vocab_size, place))
    if owner in ("gate_proj", "up_proj", "down_proj"):
        within = span(text.intermediate_size, place, unit=unit(text.intermediate_size, groups))
    elif owner in ("q_proj", "o_proj", "k_proj", "v_proj"):
        heads = key_heads(text, place) if owner in ("k_proj", "v_proj") else span(text.num_attention_heads, place)
        within = heads[0] * head_dim(text), heads[1] * head_dim(text)
    else:
        return None
    if owner in ROWS:
        return None if kind == "bias" else Part(1, within)
    return Part(0, within)


def problems(text: Any, size: int, *, groups: Sequence[int] = ()) -> list[str]:
    """Why this model cannot be divided among so many ranks, if it cannot."""
    heads, keys, experts = text.num_attention_heads, text.num_key_value_heads, getattr(text, "num_experts", size)
    pieces = text.intermediate_size // unit(text.intermediate_size, groups)
    attention = unit(heads * head_dim(text), groups)
    out = []
    if heads % size:
        out.append(f"{heads} attention heads are not divisible by {size}")
    if keys % size and size % keys:
        out.append(f"{keys} key-value heads can neither be divided by {size} nor repeated evenly")
    if text.vocab_size % size:
        out.append(f"a vocabulary of {text.vocab_size:,} is not divisible by {size}")
    if min(experts, pieces) < size:
        out.append(f"{min(experts, pieces)} experts or groups of weights cannot be divided by {size}")
    if size > 1 and heads // size * head_dim(text) % attention:
        out.append(f"{heads}/{size} heads of {head_dim(text)} do not end between groups of {attention} weights")
    return out


def possible(text: Any, *, groups: Sequence[int] = (), most: int = 16) -> list[int]:
    """The numbers of ranks that this model can be divided among."""
    return [size for size in range(1, most + 1) if not problems(text, size, groups=groups)]


def refuse(text: Any, size: int, *, groups: Sequence[int] = ()) -> None:
    """A JobError that says which numbers would do."""
    if wrong := problems(text, size, groups=groups):
        fitting = ", ".join(map(str, possible(text, groups=groups)))
        raise JobError(f"model.tensor_parallel: {size} does not work: {'; '.join(wrong)}. Possible: {fitting}")
