"""What waits and what is free -> who comes in, and how much is computed in one step. All pure.

A row's need is known on arrival: its prompt and its whole answer budget. It gets one run of the
cache for its whole stay, so nothing is ever swapped out or taken back. Rows that do not fit now are
overtaken by rows behind them, but by no more than `patience` of them in all: then the room that
comes free is kept until they fit. Whatever is free and can be used within those rules is used.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

FreeRun = tuple[int, int]  # start and length of a free run of the cache
FreeRuns = tuple[FreeRun, ...]  # in order, never touching


def allocate_run(free_runs: FreeRuns, tokens: int) -> tuple[int, FreeRuns] | None:
    """The tightest hole that holds them: where the run starts, and what is left.

    >>> take(((0, 9), (20, 5)), 5)
    (20, ((0, 9),))
    >>> take(((0, 9), (20, 5)), 6)
    (0, ((6, 3), (20, 5)))
    """
    fitting = [(size, start) for start, size in free_runs if size >= tokens]
    if not fitting:
        return None
    size, start = min(fitting)
    rest = ((start + tokens, size - tokens),) if size > tokens else ()
    at = free_runs.index((start, size))
    return start, free_runs[:at] + rest + free_runs[at + 1 :]


def release_run(free_runs: FreeRuns, start: int, tokens: int) -> FreeRuns:
    """The holes after a run comes back.

    >>> give(((0, 4), (10, 5)), 4, 6)
    ((0, 15),)
    """
    at = bisect(free_runs, (start, tokens))
    before, after = free_runs[:at], free_runs[at:]
    if before and sum(before[-1]) == start:
        start, tokens, before = before[-1][0], before[-1][1] + tokens, before[:-1]
    if after and start + tokens == after[0][0]:
        tokens, after = tokens + after[0][1], after[1:]
    return (*before, (start, tokens), *after)


@dataclass(frozen=True, slots=True)
class CacheRequest:
    tokens: int  # of cache
    overtaken_count: int = 0  # by how many rows that came later


def choose_admissions(
    waiting: Sequence[CacheRequest], free_runs: FreeRuns, *, slots: int, max_overtakes: int
) -> tuple[dict[int, int], FreeRuns]:
    """Who comes in now, by index, with the start of the run each gets; and the holes that are left."""
    admitted: dict[int, int] = {}
    allowed = len(waiting)  # how many may still overtake those who were left behind
    for index, need in enumerate(waiting):
        if len(admitted) == slots or allowed <= 0:
            break
        if found := allocate_run(free_runs, need.tokens):
            admitted[index], free_runs = found
            allowed -= 1
        else:
            allowed = min(allowed, max_overtakes - need.overtaken_count)
    return admitted, free_runs


def split_token_budget(pending_tokens: Sequence[int], budget: int) -> list[int]:
    """How many of each row's tokens are computed now. Who has one left always gets it: it is decoding.

    >>> chunks([1, 700, 1, 600, 20], 1000)
    [1, 700, 1, 300, 0]
    """
    counts = []
    for left in pending_tokens:
        counts.append(1 if left == 1 else min(left, budget))
        budget -= 0 if left == 1 else counts[-1]
    return counts


def count_fitting(patches: Sequence[int], budget: int) -> int:
    """How many from the front go through the vision tower together: at least one."""
    return max(1, bisect(list(accumulate(patches)), budget))
