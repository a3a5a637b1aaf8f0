"""Equal rows among very many: the same as a dictionary finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run import dedup
from pipeline.run.dedup import HashBuckets, find_common, find_duplicates

row = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2))


def filled(rows, size=7):
    held = HashBuckets()
    for start in range(0, len(rows), size):
        held.add_hashes(np.array(rows[start : start + size], np.uint64).reshape(-1, 3))
    return held


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60))
def test_of_equal_rows_all_but_the_first_are_found(rows):
    with filled(rows) as held:
        found = sorted(int(at) for bucket in held for at in find_duplicates(bucket)[0])
    assert found == [at for at, one in enumerate(rows) if one in rows[:at]]


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60))
def test_an_id_with_two_questions_is_found(rows):
    with filled(rows) as held:
        torn = {rows[at][0] for bucket in held for pair in find_duplicates(bucket)[1] for at in pair}
    asked = {}
    for one in rows:
        asked.setdefault(one[0], set()).add(one)
    assert torn == {name for name, questions in asked.items() if len(questions) > 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=60), st.lists(row, max_size=60))
def test_rows_that_stand_elsewhere_are_found(rows, others):
    with filled(rows) as ours, filled(others) as theirs:
        found = sorted(
            int(at) for one, other in zip(ours, theirs, strict=True) for at in one["at"][find_common(one, other)]
        )
    assert found == [at for at, one in enumerate(rows) if one in others]


def test_what_goes_to_disk_comes_back_whole(monkeypatch):
    monkeypatch.setattr(dedup, "IN_MEMORY_BYTES", 64)
    monkeypatch.setattr(dedup, "TOGETHER", 100)
    rows = np.random.default_rng(0).integers(0, 2**63, (5000, 3), np.uint64)
    with filled([*map(tuple, rows)], size=37) as held:
        seen = np.concatenate([*held])
    assert np.array_equal(np.sort(seen["at"]), np.arange(5000))
    assert np.array_equal(seen[np.argsort(seen["at"])]["low"], rows[:, 2])
