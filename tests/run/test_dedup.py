"""Duplicates among very many rows, compared with what a dictionary finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run import dedup
from pipeline.run.dedup import HashBuckets, find_common_rows, find_duplicates, match_rows

pytestmark = pytest.mark.process

row = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2))


def fill_buckets(rows, size=7):
    buckets = HashBuckets()
    for start in range(0, len(rows), size):
        buckets.add_hashes(np.array(rows[start : start + size], np.uint64).reshape(-1, 3))
    return buckets


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60))
def test_every_repetition_of_a_row_is_found(rows):
    with fill_buckets(rows) as buckets:
        found = sorted(int(at) for bucket in buckets for at in find_duplicates(bucket)[0])
    assert found == [at for at, one in enumerate(rows) if one in rows[:at]]


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60))
def test_an_id_with_two_questions_is_found(rows):
    with fill_buckets(rows) as buckets:
        conflicting = {rows[at][0] for bucket in buckets for pair in find_duplicates(bucket)[1] for at in pair}
    rows_by_id = {}
    for one in rows:
        rows_by_id.setdefault(one[0], set()).add(one)
    assert conflicting == {name for name, questions in rows_by_id.items() if len(questions) > 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60), st.lists(row, max_size=60))
def test_rows_that_are_also_in_another_set_are_found(rows, others):
    with fill_buckets(rows) as buckets, fill_buckets(others) as other_buckets:
        found = sorted(
            int(at)
            for one, other in zip(buckets, other_buckets, strict=True)
            for at in one["at"][find_common_rows(one, other)]
        )
    assert found == [at for at, one in enumerate(rows) if one in others]


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60), st.lists(row, max_size=60))
def test_rows_are_matched_with_the_first_that_asks_the_same_in_each_set(rows, others):
    with fill_buckets(rows) as buckets, fill_buckets(others) as other_buckets:
        pairs = zip(buckets, other_buckets, strict=True)
        found = sorted(tuple(map(int, match)) for one, other in pairs for match in match_rows(one, other))
    expected = [(at, rows.index(one), others.index(one) if one in others else -1) for at, one in enumerate(rows)]
    assert found == [match for match in expected if match[0] != match[1] or match[2] >= 0]


def test_buckets_on_disk_keep_every_row(monkeypatch):
    monkeypatch.setattr(dedup, "SPOOL_BYTES", 64)
    monkeypatch.setattr(dedup, "MAX_BUFFERED_ROWS", 100)
    rows = np.random.default_rng(0).integers(0, 2**63, (5000, 3), np.uint64)
    with fill_buckets([*map(tuple, rows)], size=37) as buckets:
        all_rows = np.concatenate([*buckets])
    assert np.array_equal(np.sort(all_rows["at"]), np.arange(5000))
    assert np.array_equal(all_rows[np.argsort(all_rows["at"])]["low"], rows[:, 2])
