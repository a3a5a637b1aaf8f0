"""Searches unit vectors: groups of similar ones, the nearest of some, and a diverse choice.

The groups are exact. Each cosine is first bounded from above, and only pairs whose bound is high enough are computed in
full, so that a million vectors of 256 numbers take minutes. Memory is bounded by blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.inspect.neighbours.cosine_bounds import CosineBounds, are_bytes_faster
from pipeline.output.thread_map import map_in_threads

BLOCK_ROWS, BLOCK_COLUMNS = 512, 2048  # a product of this size stays in the cache of a core
STRIPE_COLUMNS = 16 * BLOCK_COLUMNS  # of the work that a thread does at once
COSINES_AT_ONCE = 2**26  # of the rows nearest to some
CANDIDATES_AT_ONCE = 2**16  # pairs that are computed in full
MAX_BLOCK_SHARE = 0.01  # of the pairs of a block; with more, a product of the whole vectors is faster
COSINE_ROUNDING = 1e-6  # so that equal vectors have a cosine of 1
APPROXIMATE_NEIGHBOURS = 64  # of each vector in the index

Vectors = NDArray[np.float32]
Block = tuple[slice, slice]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
TensorPair = tuple[torch.Tensor, torch.Tensor]
ReportShare = Callable[[float], None]  # of the work that is done


class Neighbour(NamedTuple):
    position: int
    cosine: float


def group_similar(pairs: Iterator[Pairs], count: int) -> list[NDArray[np.int64]]:
    """The sets of two and more vectors that pairs connect, directly or through others; the largest first."""
    parents = np.arange(count)
    for first, second in pairs:
        while True:
            first, second = find_roots(parents, first), find_roots(parents, second)
            apart = first != second
            if not apart.any():
                break
            first, second = first[apart], second[apart]
            parents[np.maximum(first, second)] = np.minimum(first, second)
    roots = find_roots(parents, parents)
    order = np.argsort(roots, kind="stable")
    starts = [0, *(np.flatnonzero(np.diff(roots[order])) + 1).tolist(), count]
    groups = (order[start:end] for start, end in pairwise(starts) if end - start > 1)
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def find_roots(parents: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    roots = parents[members]
    while (parents[roots] != roots).any():
        roots = parents[roots]
    parents[members] = roots
    return roots


def find_similar_pairs(vectors: Vectors, least_cosine: float, report_share: ReportShare) -> Iterator[Pairs]:
    """All pairs of at least this cosine, each once."""
    least_cosine -= COSINE_ROUNDING
    count, on_gpu, torch_threads = len(vectors), torch.cuda.is_available(), torch.get_num_threads()
    torch.set_num_threads(1)  # threads that share no product need not wait for each other
    try:
        whole = torch.from_numpy(vectors).to("cuda" if on_gpu else "cpu")
        bounds = CosineBounds(whole, in_bytes=not on_gpu and are_bytes_faster(BLOCK_ROWS, BLOCK_COLUMNS))

        def find_pairs_in_stripe(stripe: Block) -> list[TensorPair]:
            rows, columns = stripe
            product, found = bounds.create_product(), []
            for left in range(columns.start, columns.stop, BLOCK_COLUMNS):
                block = rows, slice(left, left + BLOCK_COLUMNS)
                candidates = bounds.find_candidates(*block, least_cosine, product)
                if candidates is not None:
                    found.append(find_pairs_in_block(whole, candidates, block, least_cosine))
            return found

        stripes = [
            (slice(top, top + BLOCK_ROWS), slice(left, min(left + STRIPE_COLUMNS, count)))
            for top in range(0, count, BLOCK_ROWS)
            for left in range(top, count, STRIPE_COLUMNS)
        ]
        threads = 1 if on_gpu else torch_threads
        for done, found in enumerate(map_in_threads(find_pairs_in_stripe, stripes, threads), 1):
            yield from ((first.cpu().numpy(), second.cpu().numpy()) for first, second in found)
            report_share(done / len(stripes))
    finally:
        torch.set_num_threads(torch_threads)


def find_pairs_in_block(whole: torch.Tensor, candidates: torch.Tensor, block: Block, least_cosine: float) -> TensorPair:
    if int(candidates.count_nonzero()) > MAX_BLOCK_SHARE * candidates.numel():
        rows, columns = block
        return list_pairs(whole[rows] @ whole[columns].T >= least_cosine, block)
    first, second = list_pairs(candidates, block)
    parts = zip(torch.split(first, CANDIDATES_AT_ONCE), torch.split(second, CANDIDATES_AT_ONCE), strict=True)
    similar = torch.cat([(whole[some] * whole[others]).sum(1) >= least_cosine for some, others in parts])
    return first[similar], second[similar]


def list_pairs(wanted: torch.Tensor, block: Block) -> TensorPair:
    """Each pair once, the smaller index first."""
    first, second = (indices + span.start for indices, span in zip(wanted.nonzero(as_tuple=True), block, strict=True))
    return first[first < second], second[first < second]


def find_pairs_in_index(vectors: Vectors, least_cosine: float, report_share: ReportShare) -> Iterator[Pairs]:
    """Most pairs of at least this cosine, by an approximate index, for many millions of vectors."""
    least_cosine -= COSINE_ROUNDING
    try:
        from usearch.index import Index
    except ImportError as error:
        raise PipelineError("--approximate needs usearch: pip install 'vlbatch[neighbours]'") from error
    index, count = Index(ndim=vectors.shape[1], metric="cos", dtype="f32"), len(vectors)
    starts = range(0, count, CANDIDATES_AT_ONCE)
    for start in starts:
        some = np.arange(start, min(start + CANDIDATES_AT_ONCE, count))
        index.add(some, vectors[some])
        report_share(some[-1] / count / 2)
    for start in starts:
        some = np.arange(start, min(start + CANDIDATES_AT_ONCE, count))
        found = index.search(vectors[some], APPROXIMATE_NEIGHBOURS)
        near = np.asarray(found.distances) <= 1 - least_cosine
        yield some[near.nonzero()[0]], np.asarray(found.keys)[near].astype(np.int64)
        report_share((1 + some[-1] / count) / 2)


def find_nearest(vectors: Vectors, queries: Sequence[int], count: int) -> list[list[Neighbour]]:
    """The nearest other vectors of each query, the nearest first."""
    whole, found = torch.from_numpy(vectors), list[list[Neighbour]]()
    for part in torch.split(torch.tensor(queries), max(1, COSINES_AT_ONCE // len(vectors))):
        cosines = whole[part] @ whole.T
        cosines[torch.arange(len(part)), part] = -torch.inf
        best = cosines.topk(min(count, len(vectors) - 1))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found += [[*map(Neighbour, *row)] for row in rows]
    return found


def choose_diverse(vectors: Vectors, count: int, report_share: ReportShare) -> list[tuple[int, Neighbour | None]]:
    """The most typical vector, then again and again the one that is least like all before it (farthest point).

    Each comes with the one that is most like it among those chosen before.
    """
    whole = torch.from_numpy(vectors)
    chosen = int((whole @ whole.mean(0)).argmax())
    picks: list[tuple[int, Neighbour | None]] = [(chosen, None)]
    cosines = torch.full((len(vectors),), -torch.inf)  # with the most similar one that is chosen
    nearest = torch.zeros(len(vectors), dtype=torch.long)
    while len(picks) < min(count, len(vectors)):
        new = whole @ whole[chosen]
        nearest[new > cosines] = chosen
        cosines = cosines.maximum(new)
        cosines[chosen] = torch.inf
        chosen = int(cosines.argmin())
        picks.append((chosen, Neighbour(int(nearest[chosen]), float(cosines[chosen]))))
        report_share(len(picks) / count)
    return picks
