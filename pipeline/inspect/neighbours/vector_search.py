"""Searches unit vectors: groups of similar ones, the nearest of some, and a diverse choice.

The groups are exact. Each cosine is first bounded from above by a product of few numbers: the coordinates along the
main directions of the vectors, and the length of all that is left. Only pairs whose bound is high enough are computed
in full, so that a million vectors of 256 numbers take minutes. Memory is bounded by blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import PipelineError

BLOCK_ROWS, BLOCK_COLUMNS = 512, 2048  # a product of this size stays in the cache of a core
CANDIDATES_AT_ONCE = 2**16  # pairs that are computed in full
SAMPLE_ROWS = 4096
BOUND_SIZES = (16, 32, 64, 128)
MAX_CANDIDATE_SHARE = 1e-6  # of all pairs: then most blocks have none, and need no second look
MAX_BLOCK_SHARE = 0.01  # of the pairs of a block; with more, a product of the whole vectors is faster
BOUND_ROUNDING = 1e-5  # of a bound, in float32
COSINE_ROUNDING = 1e-6  # so that equal vectors have a cosine of 1
APPROXIMATE_NEIGHBOURS = 64  # of each vector in the index

Vectors = NDArray[np.float32]
Block = tuple[slice, slice]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
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
    """All pairs of at least this cosine, each once, block by block."""
    least_cosine -= COSINE_ROUNDING
    whole = torch.from_numpy(vectors).to("cuda" if torch.cuda.is_available() else "cpu")
    bounds = compute_bounds(whole, least_cosine)
    count, done = len(vectors), 0
    for top in range(0, count, BLOCK_ROWS):
        for left in range(top, count, BLOCK_COLUMNS):
            block = slice(top, top + BLOCK_ROWS), slice(left, left + BLOCK_COLUMNS)
            first, second = find_pairs_in_block(whole, bounds, block, least_cosine)
            yield first.cpu().numpy(), second.cpu().numpy()
            done += BLOCK_ROWS * BLOCK_COLUMNS
        report_share(min(1.0, done / (count * (count + BLOCK_COLUMNS) / 2)))


def find_pairs_in_block(
    whole: torch.Tensor, bounds: torch.Tensor | None, block: Block, least_cosine: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = block
    if bounds is not None:
        product, least_product = bounds[rows] @ bounds[columns].T, least_cosine - BOUND_ROUNDING
        if product.amax() < least_product:
            nothing = torch.empty(0, dtype=torch.long)
            return nothing, nothing
        candidates = product >= least_product
        if int(candidates.count_nonzero()) <= MAX_BLOCK_SHARE * candidates.numel():
            first, second = list_pairs(candidates, block)
            parts = zip(torch.split(first, CANDIDATES_AT_ONCE), torch.split(second, CANDIDATES_AT_ONCE), strict=True)
            similar = torch.cat([(whole[some] * whole[others]).sum(1) >= least_cosine for some, others in parts])
            return first[similar], second[similar]
    return list_pairs(whole[rows] @ whole[columns].T >= least_cosine, block)


def list_pairs(wanted: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair once, the smaller index first."""
    first, second = (indices + span.start for indices, span in zip(wanted.nonzero(as_tuple=True), block, strict=True))
    return first[first < second], second[first < second]


def compute_bounds(whole: torch.Tensor, least_cosine: float) -> torch.Tensor | None:
    """Short vectors whose products are never less than the cosines; None where they would save nothing."""
    count, width = whole.shape
    sample = whole[torch.linspace(0, count - 1, min(count, SAMPLE_ROWS)).long()]
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)  # the main ones first
    for size in (size for size in BOUND_SIZES if 2 * size <= width):
        bounds = shorten(sample, directions[:, : size - 1])
        candidates = int(((bounds @ bounds.T) >= least_cosine - BOUND_ROUNDING).sum()) - len(sample)
        similar = int(((sample @ sample.T) >= least_cosine).sum()) - len(sample)
        if candidates - similar <= MAX_CANDIDATE_SHARE * len(sample) ** 2:
            return torch.cat(
                [shorten(part, directions[:, : size - 1]) for part in torch.split(whole, CANDIDATES_AT_ONCE)]
            )
    return None


def shorten(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Some coordinates of each vector, and the length of the rest."""
    coordinates = vectors @ directions
    rest = (1 - coordinates.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([coordinates, rest], 1)


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
    whole = torch.from_numpy(vectors)
    found = []
    for query in queries:
        cosines = whole @ whole[query]
        cosines[query] = -torch.inf
        best = cosines.topk(min(count, len(vectors) - 1))
        found.append([*map(Neighbour, best.indices.tolist(), best.values.tolist())])
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
