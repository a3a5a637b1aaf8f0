"""Which part of each weight a rank of a replica holds. Pure functions of shapes.

    column   outputs are divided: q, k, v, gate, up; embeddings and head by vocabulary
    row      inputs are divided: o, down; the outputs of all ranks are summed
    expert   whole experts: a mixture is divided between experts, never inside one
    delta    whole heads of Gated DeltaNet; where a weight holds queries, keys and values, the same heads of each

The family's `shard_rules` say which weight is divided how. Attention is divided by heads, so that a rank's query heads
find their keys on the same rank; with fewer key heads than ranks, neighbours hold the same one. Norms, a mixture's
router and the vision tower are on every rank: they are a few per cent of the weights, and the tower's work is divided
by clips instead. Four-bit weights are cut between groups only, so the shares have exactly the weights of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.model.families.model_architecture import ModelArchitecture, ShardUnit

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This rank, and the number of ranks."""

    rank: int = 0
    size: int = 1


SINGLE_RANK = TensorParallel()
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class WeightShard:
    """The part of a weight that a rank holds: a span of one dimension, or several that are joined."""

    dim: int
    span: Span
    further_spans: tuple[Span, ...] = ()

    def split(self) -> list[WeightShard]:
        """One shard for each span."""
        return [WeightShard(self.dim, span) for span in (self.span, *self.further_spans)]

    @property
    def length(self) -> int:
        return sum(end - first for first, end in (self.span, *self.further_spans))


def compute_span(count: int, tp: TensorParallel, *, unit_size: int = 1) -> Span:
    """This rank's share of `count`, in whole units, as even as they allow.

    >>> [compute_span(10, TensorParallel(rank, 4)) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    >>> [compute_span(384, TensorParallel(rank, 2), unit_size=128) for rank in range(2)]
    [(0, 128), (128, 384)]
    """
    units = count // unit_size
    return units * tp.rank // tp.size * unit_size, units * (tp.rank + 1) // tp.size * unit_size


def get_head_dim(text_config: Any) -> int:
    return int(getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads)


def get_mlp_width(text_config: Any) -> int:
    """Of the dense layers; of the expert that all tokens share, where every layer is a mixture with one."""
    shared_width = getattr(text_config, "shared_expert_intermediate_size", None)
    return int(shared_width or text_config.intermediate_size)


def assign_key_heads(text_config: Any, tp: TensorParallel) -> Span:
    """At least one for every rank; where there are fewer heads than ranks, several ranks hold the same one."""
    if text_config.num_key_value_heads >= tp.size:
        return compute_span(text_config.num_key_value_heads, tp)
    head = text_config.num_key_value_heads * tp.rank // tp.size
    return head, head + 1


def find_group_size(in_features: int, group_sizes: Sequence[int]) -> int:
    """The number of inputs that share a scale in a four-bit layer; 1 for dense weights."""
    return next((group for group in group_sizes if in_features % group == 0), 1)


def compute_unit_spans(
    unit: ShardUnit, text_config: Any, tp: TensorParallel, group_sizes: Sequence[int]
) -> tuple[Span, ...]:
    if unit == "vocabulary":
        return (compute_span(text_config.vocab_size, tp),)
    if unit == "experts":
        return (compute_span(text_config.num_experts, tp),)
    if unit == "mlp":
        width = get_mlp_width(text_config)
        return (compute_span(width, tp, unit_size=find_group_size(width, group_sizes)),)
    if unit in ("delta_heads", "delta_values", "delta_mixed"):
        return compute_delta_spans(unit, text_config, tp)
    head_dim = get_head_dim(text_config) * (2 if unit == "gated_heads" else 1)
    is_key = unit == "key_heads"
    heads = assign_key_heads(text_config, tp) if is_key else compute_span(text_config.num_attention_heads, tp)
    return (scale_span(heads, head_dim),)


def compute_delta_spans(unit: ShardUnit, text_config: Any, tp: TensorParallel) -> tuple[Span, ...]:
    value_heads = compute_span(text_config.linear_num_value_heads, tp)
    if unit == "delta_heads":
        return (value_heads,)
    values = scale_span(value_heads, text_config.linear_value_head_dim)
    if unit == "delta_values":
        return (values,)
    key_heads, key_dim = text_config.linear_num_key_heads, text_config.linear_key_head_dim
    keys, width = scale_span(compute_span(key_heads, tp), key_dim), key_heads * key_dim
    starts = (keys, 0), (keys, width), (values, 2 * width)  # queries, keys, values
    return tuple((first + start, end + start) for (first, end), start in starts)


def scale_span(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor


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
        first, *further = compute_unit_spans(rule.unit, text_config, self.tp, self.group_sizes)
        return WeightShard(rule.dim, first, tuple(further))


def find_tp_problems(text_config: Any, tp_size: int, *, group_sizes: Sequence[int] = ()) -> list[str]:
    """Why this model cannot be divided among so many ranks; empty where it can."""
    heads, key_heads = text_config.num_attention_heads, text_config.num_key_value_heads
    head_dim, width = get_head_dim(text_config), get_mlp_width(text_config)
    mlp_groups = width // find_group_size(width, group_sizes)
    divisible_parts = min(getattr(text_config, "num_experts", tp_size), mlp_groups)
    attention_group = find_group_size(heads * head_dim, group_sizes)
    problems = []
    if heads % tp_size:
        problems.append(f"{heads} attention heads are not divisible by {tp_size}")
    if key_heads % tp_size and tp_size % key_heads:
        problems.append(f"{key_heads} key-value heads can neither be divided by {tp_size} nor repeated evenly")
    if text_config.vocab_size % tp_size:
        problems.append(f"a vocabulary of {text_config.vocab_size:,} is not divisible by {tp_size}")
    if divisible_parts < tp_size:
        problems.append(f"{divisible_parts} experts or groups of weights cannot be divided by {tp_size}")
    delta_heads = getattr(text_config, "linear_num_key_heads", 0)
    if delta_heads % tp_size:
        problems.append(f"{delta_heads} key heads of linear attention are not divisible by {tp_size}")
    if delta_heads:
        value_width = text_config.linear_num_value_heads * text_config.linear_value_head_dim
        group = find_group_size(value_width, group_sizes)
        if value_width // tp_size % group:
            problems.append(f"{value_width}/{tp_size} values of linear attention are not in groups of {group}")
    if tp_size > 1 and heads // tp_size * head_dim % attention_group:
        problems.append(f"{heads}/{tp_size} heads of {head_dim} do not end between groups of {attention_group} weights")
    return problems


def list_tp_sizes(text_config: Any, *, group_sizes: Sequence[int] = (), max_size: int = 16) -> list[int]:
    """The numbers of ranks among which this model can be divided."""
    sizes = range(1, max_size + 1)
    return [size for size in sizes if not find_tp_problems(text_config, size, group_sizes=group_sizes)]


def check_tp_size(text_config: Any, tp_size: int, *, group_sizes: Sequence[int] = ()) -> None:
    if problems := find_tp_problems(text_config, tp_size, group_sizes=group_sizes):
        possible = ", ".join(map(str, list_tp_sizes(text_config, group_sizes=group_sizes)))
        raise JobError(f"model.tensor_parallel: {tp_size} does not work: {'; '.join(problems)}. Possible: {possible}")
