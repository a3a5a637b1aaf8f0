"""Runs of the KV cache: contiguous ranges, which are given to sequences and come back. Plain Python without tensors."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

Run = tuple[int, int]  # its start and its length in tokens
FreeRuns = tuple[Run, ...]  # by start; neighbours are merged


def allocate_run(free_runs: FreeRuns, tokens: int) -> tuple[int, FreeRuns] | None:
    """Take a run from the smallest free range that holds it: its start, and the ranges that are left.

    >>> allocate_run(((0, 9), (20, 5)), 5)
    (20, ((0, 9),))
    >>> allocate_run(((0, 9), (20, 5)), 6)
    (0, ((6, 3), (20, 5)))
    """
    fitting = [(length, start) for start, length in free_runs if length >= tokens]
    if not fitting:
        return None
    length, start = min(fitting)
    remainder = ((start + tokens, length - tokens),) if length > tokens else ()
    index = free_runs.index((start, length))
    return start, free_runs[:index] + remainder + free_runs[index + 1 :]


def release_run(free_runs: FreeRuns, start: int, tokens: int) -> FreeRuns:
    """Give a run back and merge it with its free neighbours.

    >>> release_run(((0, 4), (10, 5)), 4, 6)
    ((0, 15),)
    """
    index = bisect(free_runs, (start, tokens))
    before, after = free_runs[:index], free_runs[index:]
    if before and sum(before[-1]) == start:
        start, tokens, before = before[-1][0], before[-1][1] + tokens, before[:-1]
    if after and start + tokens == after[0][0]:
        tokens, after = tokens + after[0][1], after[1:]
    return (*before, (start, tokens), *after)


def allocate_with_evictions(free_runs: FreeRuns, tokens: int, kept: Sequence[Run]) -> tuple[int, FreeRuns, int] | None:
    """As `allocate_run`, after as few of `kept` are freed, from its front, as it takes; and how many they are.

    >>> allocate_with_evictions(((0, 3), (9, 1)), 5, [(3, 2), (5, 4)])
    (0, ((9, 1),), 1)
    """
    for count, place in enumerate([None, *kept]):
        if place:
            free_runs = release_run(free_runs, *place)
        if allocation := allocate_run(free_runs, tokens):
            return *allocation, count
    return None


def extend_or_move(
    run: Run, needed: int, wanted: int, free_runs: FreeRuns, kept: Sequence[Run]
) -> tuple[Run, FreeRuns, int] | None:
    """A run of at least `needed` tokens in place of a smaller one; the free runs then; and how many `kept` it took.

    It is the same run with what is free behind it, up to `wanted` tokens; or else another of `wanted` tokens. What
    `kept` holds is freed from its front, as little as possible. The old run is not freed: it is still to be copied.

    >>> extend_or_move((4, 4), 6, 8, ((0, 4), (8, 3), (20, 8)), [])
    ((4, 7), ((0, 4), (20, 8)), 0)
    >>> extend_or_move((4, 4), 8, 8, ((0, 4), (8, 3), (20, 8)), [])
    ((20, 8), ((0, 4), (8, 3)), 0)
    """
    start, tokens = run
    for count, place in enumerate([None, *kept]):
        if place:
            free_runs = release_run(free_runs, *place)
        behind = next((length for first, length in free_runs if first == start + tokens), 0)
        if tokens + behind >= needed:
            added = min(behind, wanted - tokens)
            rest = ((start + tokens + added, behind - added),) if behind > added else ()
            index = free_runs.index((start + tokens, behind))
            return (start, tokens + added), free_runs[:index] + rest + free_runs[index + 1 :], count
        if allocation := allocate_run(free_runs, wanted):
            return (allocation[0], wanted), allocation[1], count
    return None
