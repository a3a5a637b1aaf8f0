"""The search against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.inspect.neighbours import vector_search
from pipeline.inspect.neighbours.cosine_bounds import CosineBounds
from pipeline.inspect.neighbours.vector_search import find_pairs_in_index, find_similar_pairs


def draw_vectors(count: int, width: int, *, planted: int = 0, noise: float = 0.02) -> np.ndarray:
    """Random unit vectors. The last ones are the first ones with a little noise."""
    rng = np.random.default_rng(count + width)
    vectors = rng.standard_normal((count, width)).astype(np.float32)
    if planted:
        vectors[-planted:] = vectors[:planted] + noise * rng.standard_normal((planted, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def collect(pairs) -> list[tuple[int, int]]:
    return sorted(pair for first, second in pairs for pair in zip(first.tolist(), second.tolist(), strict=True))


def compare_all(vectors: np.ndarray, least_cosine: float) -> list[tuple[int, int]]:
    first, second = np.triu(vectors.astype(np.float64) @ vectors.astype(np.float64).T >= least_cosine, 1).nonzero()
    return [*zip(first.tolist(), second.tolist(), strict=True)]


def ignore(share: float) -> None:
    pass


@pytest.mark.parametrize(("count", "width"), [(30, 4), (1500, 8), (1500, 64), (2200, 256)])
@pytest.mark.parametrize("least_cosine", [0.3, 0.6, 0.95])
def test_pairs_are_those_of_brute_force(count, width, least_cosine):
    vectors = draw_vectors(count, width, planted=count // 10)
    expected = compare_all(vectors, least_cosine)
    found = collect(find_similar_pairs(vectors, least_cosine, ignore))
    assert expected
    assert len(found) == len(set(found))
    assert all(abs(vectors[i] @ vectors[j] - least_cosine) < 2e-6 for i, j in set(found) ^ set(expected))


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("width", [8, 96, 256])
@pytest.mark.parametrize("shape", ["round", "narrow", "sparse"])
def test_no_pair_is_above_its_bound(shape, width, in_bytes):
    """Also where all vectors point in one direction, or have one number that is much larger than the others."""
    drawn = draw_vectors(600, width, planted=60)
    drawn[:, 0] += {"round": 0, "narrow": 3, "sparse": 0}[shape]
    drawn[range(40), np.arange(40) % width] += {"round": 0, "narrow": 0, "sparse": 9}[shape]
    vectors = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    bounds = CosineBounds(vectors, in_bytes=in_bytes)
    cosines = vectors @ vectors.T
    for least_cosine in (0.2, 0.8, 0.95, 1 - 1e-6):
        candidates = bounds.find_candidates(slice(0, 600), slice(0, 600), least_cosine, bounds.create_product())
        assert candidates is not None  # each is like itself
        assert not (~candidates & (cosines >= least_cosine)).any()


@pytest.mark.parametrize("in_bytes", [False, True])
def test_bounds_leave_few_pairs_to_compute(in_bytes):
    vectors = torch.from_numpy(draw_vectors(1000, 256, planted=100))
    bounds = CosineBounds(vectors, in_bytes=in_bytes)
    product = bounds.create_product()
    candidates = bounds.find_candidates(slice(0, 1000), slice(0, 1000), 0.95, product)
    assert candidates is not None
    assert int(candidates.sum()) == 1000 + 2 * 100
    assert bounds.find_candidates(slice(0, 800), slice(800, 900), 0.95, product) is None


def test_pairs_are_found_wherever_they_stand():
    """More rows than a thread compares at once."""
    count = vector_search.STRIPE_COLUMNS + 3000
    vectors = draw_vectors(count, 64, planted=500)
    found = collect(find_similar_pairs(vectors, 0.98, ignore))
    assert found == [(row, count - 500 + row) for row in range(500)]


def test_equal_vectors_have_a_cosine_of_one():
    vectors = np.repeat(draw_vectors(30, 256), 2, axis=0)
    assert len(collect(find_similar_pairs(vectors, 1.0, ignore))) == 30


def test_many_equal_vectors_are_one_group():
    vectors = np.concatenate([draw_vectors(50, 32), np.repeat(draw_vectors(1, 32), 3000, axis=0)])
    groups = vector_search.group_similar(find_similar_pairs(vectors, 0.999, ignore), len(vectors))
    assert [group.tolist() for group in groups] == [[*range(50, 3050)]]


def test_groups_are_the_connected_components():
    networkx = pytest.importorskip("networkx")
    vectors = draw_vectors(2000, 6)
    graph = networkx.Graph(compare_all(vectors, 0.97))
    expected = sorted(sorted(component) for component in networkx.connected_components(graph))
    groups = vector_search.group_similar(find_similar_pairs(vectors, 0.97, ignore), len(vectors))
    assert [len(group) for group in groups] == sorted(map(len, expected), reverse=True)
    assert sorted(group.tolist() for group in groups) == expected


def test_an_index_finds_planted_duplicates():
    pytest.importorskip("usearch")
    vectors = draw_vectors(3000, 64, planted=300)
    shares: list[float] = []
    found = {(min(pair), max(pair)) for pair in collect(find_pairs_in_index(vectors, 0.9, shares.append))} - {
        (row, row) for row in range(3000)
    }
    expected = set(compare_all(vectors, 0.9))
    assert found <= expected
    assert len(found) >= 0.98 * len(expected)
    assert shares == sorted(shares)
    assert shares[-1] > 0.99


def test_nearest_are_those_of_brute_force():
    vectors = draw_vectors(500, 16)
    cosines = vectors @ vectors.T
    for query, found in zip((3, 77), vector_search.find_nearest(vectors, [3, 77], 5), strict=True):
        best = [index for index in np.argsort(-cosines[query]) if index != query][:5]
        assert [neighbour.position for neighbour in found] == best
        assert [neighbour.cosine for neighbour in found] == pytest.approx(cosines[query][best].tolist(), abs=1e-6)


def test_fewer_rows_than_wanted_are_all_there_are():
    vectors = draw_vectors(3, 4)
    assert len(vector_search.find_nearest(vectors, [0], 10)[0]) == 2
    assert {index for index, _ in vector_search.choose_diverse(vectors, 10, ignore)} == {0, 1, 2}


def test_a_diverse_choice_takes_the_farthest_point_each_time():
    vectors = draw_vectors(400, 8)
    picks = vector_search.choose_diverse(vectors, 30, ignore)
    chosen = [index for index, _ in picks]
    assert len(set(chosen)) == 30
    assert chosen[0] == int((vectors @ vectors.mean(0)).argmax())
    cosines = vectors @ vectors.T
    for step in range(1, 30):
        nearest = cosines[:, chosen[:step]].max(axis=1)
        nearest[chosen[:step]] = 2
        index, like = picks[step]
        assert nearest[index] == pytest.approx(nearest.min(), abs=1e-6)
        assert like is not None
        assert like.cosine == pytest.approx(cosines[index][chosen[:step]].max(), abs=1e-6)
        assert like.position in chosen[:step]
