"""Parts that hold the same rows as others: which of them are superfluous."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run.orphans import OrphanRows, count_repeated_rows, find_superfluous_parts

ROW_SETS = st.lists(st.sets(st.sampled_from("abcdefgh")), min_size=2, max_size=5)
COLUMNS = pa.schema([("id", pa.string()), ("question", pa.string())])


@pytest.fixture(scope="module")
def new_dataset(tmp_path_factory):
    return lambda: Dataset(OutputStore(str(tmp_path_factory.mktemp("out"))), "f")


def name_part(word):
    return word.encode().hex().ljust(24, "0")


def commit(dataset, part, ids, *, epoch=1, errors=None):
    rows = pa.table({"id": [*ids], "question": [*ids]}, schema=COLUMNS)
    dataset.commit_part(name_part(part), rows, {"epoch": epoch, "errors": errors}, lambda: None)


def find(dataset, orphans, others=()):
    orphan_parts, other_parts = (dataset.list_parts().select([*map(name_part, parts)]) for parts in (orphans, others))
    rows = OrphanRows(orphan_parts, other_parts=other_parts, are_repeated=True)
    superfluous, repeats_rows = find_superfluous_parts(rows, dataset)
    return [bytes.fromhex(part).rstrip(b"\0").decode() for part in superfluous], repeats_rows


@pytest.mark.parametrize("orphans", [["late"], ["x", "y"], ["late", "x", "y"]])
def test_the_part_of_the_older_run_is_superfluous(new_dataset, orphans):
    dataset = new_dataset()
    commit(dataset, "x", "abc", epoch=2)
    commit(dataset, "late", "abcd", epoch=1)
    commit(dataset, "y", "def", epoch=2)
    others = [part for part in ("late", "x", "y") if part not in orphans]
    assert find(dataset, orphans, others) == (["late"], False)


def test_the_part_of_a_chunk_with_failed_rows_stays(new_dataset):
    dataset = new_dataset()
    commit(dataset, "late", "abc", epoch=1, errors="late-1.parquet")
    commit(dataset, "x", "ab", epoch=2)
    commit(dataset, "y", "cde", epoch=2)
    assert find(dataset, ["x", "y"], ["late"]) == (["x"], True)
    assert find(dataset, ["late", "x", "y"]) == (["late"], False)


@settings(max_examples=30, deadline=None)
@given(ROW_SETS, st.integers(0, 5))
def test_no_row_is_lost_and_no_superfluous_part_stays(new_dataset, row_sets, orphan_count):
    dataset = new_dataset()
    parts = {f"p{number}": rows for number, rows in enumerate(row_sets)}
    for part, rows in parts.items():
        commit(dataset, part, sorted(rows), epoch=len(rows))
    names = list(parts)
    superfluous, repeats_rows = find(dataset, names[:orphan_count], names[orphan_count:])
    staying = [part for part in names if part not in superfluous]
    assert set().union(*(parts[part] for part in staying)) == set().union(*row_sets)
    assert repeats_rows == (count_repeated_rows(dataset.list_parts().select([*map(name_part, staying)]), dataset) > 0)
    assert find(dataset, staying) == ([], repeats_rows)
