"""Which tokens a sequence computes to learn how probable its continuations are.

The tokens of a continuation but for its last are a branch of the prompt. The branches of a sequence take turns behind
its prompt: each is computed in one step, in the same place of the sequence's run of the KV cache, so that the prompt is
computed once and nothing is copied. A state of linear attention stays as it was after the prompt, because a branch
only reads it. Branches of several sequences share a step with each other and with prompts.

A continuation of one token has no branch: the last token of the prompt says how probable it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.types import Continuation


class Target(NamedTuple):
    """A token whose probability is wanted."""

    offset: int  # the token of the branch that it follows; -1: the last of the prompt
    token: int
    continuation: int


@dataclass(frozen=True, slots=True)
class Branch:
    token_ids: tuple[int, ...]
    targets: tuple[Target, ...]


def plan_branches(continuations: Sequence[Continuation]) -> list[Branch]:
    """First that of the prompt, which has no tokens. A branch with which another begins is a part of that.

    >>> plan_branches([Continuation((1,), 0, ""), Continuation((2, 3), 1, "")])
    [Branch(token_ids=(), targets=(Target(offset=-1, token=1, continuation=0),)), \
Branch(token_ids=(2,), targets=(Target(offset=0, token=3, continuation=1),))]
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


class ContinuationScorer:
    """The state of a sequence's branches, and what is known of its continuations."""

    def __init__(self, continuations: Sequence[Continuation]):
        self.branches = deque(plan_branches(continuations))  # that are not computed yet; the first is at work
        self.longest = max(len(branch.token_ids) for branch in self.branches)
        self.logprobs = [0.0] * len(continuations)
        self.unread_count = sum(len(branch.targets) for branch in self.branches)

    def list_targets(self, token_count: int) -> list[Target]:
        """The targets of a step that ends with the branch; `offset` counts from the first token of the step."""
        shift = token_count - len(self.branches[0].token_ids)
        return [target._replace(offset=target.offset + shift) for target in self.branches[0].targets]

    def add_logprob(self, continuation: int, logprob: float) -> bool:
        """Whether all are known now."""
        self.logprobs[continuation] += logprob
        self.unread_count -= 1
        return not self.unread_count
