"""Which tokens a sequence computes to learn how probable its continuations are.

The tokens of a continuation but for its last are a branch of the prompt. The branches of a sequence take turns behind
its prompt, in the same place of the sequence's run of the KV cache, so that the prompt is computed once and nothing is
copied. A state of linear attention stays as it was after the prompt, because a branch only reads it. Where attention
takes a mask, several branches are computed in one step, side by side, and none sees another; the flash kernel takes
none. Branches of several sequences share a step with each other and with prompts in any case.

A continuation of one token has no branch: the last token of the prompt says how probable it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Continuation


class Target(NamedTuple):
    """A token whose probability is wanted."""

    offset: int  # the token of the branch that it follows; -1: the last of the prompt
    token: int
    continuation: int


class TargetColumns(NamedTuple):
    """The same of many tokens: an object for each of them would cost more than a short prompt does."""

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int64]
    continuations: NDArray[np.int64]


NO_TARGETS = TargetColumns(*np.zeros((3, 0), np.int64))


@dataclass(frozen=True)
class Branch:
    """Tokens that are computed in one step behind the prompt; or several such branches."""

    token_ids: tuple[int, ...]
    targets: tuple[Target, ...]
    lengths: tuple[int, ...] = ()  # of each, where there are several

    @cached_property
    def target_columns(self) -> TargetColumns:
        return TargetColumns(*np.asarray(self.targets, np.int64).reshape(-1, 3).T)


def plan_branches(continuations: Sequence[Continuation]) -> list[Branch]:
    """First that of the prompt, which has no tokens. A branch with which another begins is a part of that.

    >>> branches = plan_branches([Continuation((1,), 0, ""), Continuation((2, 3), 1, "")])
    >>> [branch.token_ids for branch in branches], branches[1].targets
    ([(), (2,)], (Target(offset=0, token=3, continuation=1),))
    """
    holders: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}  # the branch that begins with these tokens
    for path in sorted({part.token_ids[:-1] for part in continuations}, key=len, reverse=True):
        for end in range(1, len(path) + 1):
            holders.setdefault(path[:end], holders.get(path, path))
    targets: dict[tuple[int, ...], list[Target]] = {(): []} | {branch: [] for branch in holders.values()}
    for number, part in enumerate(continuations):
        for place in range(part.scored_from, len(part.token_ids)):
            branch = holders[part.token_ids[:-1]] if place else ()
            targets[branch].append(Target(place - 1, part.token_ids[place], number))
    return [Branch(tokens, tuple(found)) for tokens, found in targets.items()]


def join_branches(branches: Sequence[Branch], max_tokens: int) -> list[Branch]:
    """Join neighbouring branches up to so many tokens; the first, which is that of the prompt, stays as it is."""
    joined, group = [branches[0]], list[Branch]()
    for branch in [*branches[1:], None]:
        if group and (branch is None or sum(len(part.token_ids) for part in (*group, branch)) > max_tokens):
            joined.append(join_group(group))
            group = []
        if branch is not None:
            group.append(branch)
    return joined


def join_group(group: Sequence[Branch]) -> Branch:
    """
    >>> one, other = Branch((1, 2), (Target(1, 5, 0),)), Branch((3,), (Target(0, 6, 1),))
    >>> joined = join_group([one, other])
    >>> joined.token_ids, [target.offset for target in joined.targets], joined.lengths
    ((1, 2, 3), [1, 2], (2, 1))
    """
    if len(group) == 1:
        return group[0]
    lengths = tuple(len(branch.token_ids) for branch in group)
    targets = [
        target._replace(offset=target.offset + sum(lengths[:number]))
        for number, branch in enumerate(group)
        for target in branch.targets
    ]
    return Branch(tuple(token for branch in group for token in branch.token_ids), tuple(targets), lengths)


@lru_cache(maxsize=16)  # the rows of a job mostly have the same choices
def plan_joined_branches(continuations: tuple[Continuation, ...], max_tokens: int) -> tuple[Branch, ...]:
    return tuple(join_branches(plan_branches(continuations), max_tokens))


class ContinuationScorer:
    """The state of a sequence's branches, and what is known of its continuations."""

    def __init__(self, continuations: Sequence[Continuation], max_joined_tokens: int = 0):
        self.branches = deque(
            plan_joined_branches(tuple(continuations), max_joined_tokens)
        )  # that are not computed yet; the first is at work
        self.longest = max(len(branch.token_ids) for branch in self.branches)
        self.logprobs = np.zeros(len(continuations))
        self.unread_count = sum(len(branch.targets) for branch in self.branches)

    def list_targets(self, token_count: int) -> TargetColumns:
        """The targets of a step that ends with the branch; offsets count from the first token of the step."""
        columns = self.branches[0].target_columns
        return columns._replace(offsets=columns.offsets + token_count - len(self.branches[0].token_ids))

    def add_logprobs(self, continuations: NDArray[np.int64], logprobs: NDArray[np.float32]) -> bool:
        """Whether all are known now."""
        np.add.at(self.logprobs, continuations, logprobs)
        self.unread_count -= len(logprobs)
        return not self.unread_count
