"""Chunks as arrays behave as the list of chunks that they were made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, compress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk, Slice
from pipeline.manifest.files import ManifestFile
from pipeline.output.part_listing import decode_name
from pipeline.types import RetryHistory

FILES = [ManifestFile(f"file:///m{number}.parquet", "parquet") for number in range(3)]
HASHES = some.binary(min_size=12, max_size=12) | some.sampled_from([bytes(12), b"a" + bytes(11), b"\xff" * 12])
EXTRAS = some.sampled_from(
    [
        {},
        {},
        {"excluded_offsets": (0, 2)},
        {"answered_offsets": (1,)},
        {"version_digests": (b"1", b"2", b"3")},
        {"slices": (Slice((0, 2), "a", 2), Slice((2, 3), "b", 1))},
        {"generation": 2, "retry_histories": (("a", RetryHistory(1, 0)),)},
    ]
)


@some.composite
def chunk_lists(draw):
    chunks = []
    for file in FILES:
        for rows_hash, start, length, rows, extra in draw(
            some.lists(
                some.tuples(
                    HASHES,
                    some.integers(0, 2**45),
                    some.integers(0, 2**16) | some.sampled_from([2**32 - 1, 2**32, 2**40]),
                    some.integers(3, 300) | some.sampled_from([2**16 - 1, 2**16, 10**6]),
                    EXTRAS,
                ),
                max_size=5,
                unique_by=lambda values: values[0],
            )
        ):
            chunks.append(Chunk(file, (start, start + length), rows_hash.hex(), rows, **extra))
    return chunks


def check_same(table: ChunkTable, chunks: list[Chunk]) -> None:
    assert len(table) == len(chunks)
    assert list(table) == chunks
    assert [table[index] for index in range(len(chunks))] == chunks
    assert [table[index] for index in range(-len(chunks), 0)] == chunks
    assert list(table[1:4]) == chunks[1:4]
    assert table.row_counts.tolist() == [chunk.row_count for chunk in chunks]
    assert table.first_rows.tolist() == [0, *accumulate(chunk.row_count for chunk in chunks)]
    assert table.asked_row_counts.tolist() == [chunk.asked_row_count for chunk in chunks]
    assert table.asked_row_count == sum(chunk.asked_row_count for chunk in chunks)
    assert [decode_name(name) for name in table.part_names.tolist()] == [chunk.part_name for chunk in chunks]
    names = [chunk.name for chunk in chunks[::2]]
    assert {**table.find_chunks(names)} == {chunk.name: chunk for chunk in chunks if chunk.name in names}


@settings(deadline=None, max_examples=60)
@given(chunk_lists(), some.randoms(use_true_random=False))
def test_a_table_behaves_as_the_list_of_its_chunks(chunks, random):
    table = ChunkTable.collect(iter(chunks))
    check_same(table, chunks)
    mask = [random.random() < 0.5 for _ in chunks]
    selected, kept = table.select(np.array(mask, bool)), list(compress(chunks, mask))
    check_same(selected, kept)
    changed = {index: replace(chunk, answered_offsets=(0,)) for index, chunk in enumerate(kept[: random.randrange(3)])}
    check_same(selected.replace_chunks(changed), [changed.get(index, chunk) for index, chunk in enumerate(kept)])
    check_same(selected, kept)
    more = [replace(chunk, generation=7) for chunk in chunks[:2]]
    check_same(selected.add_chunks(more), kept + more)
    check_same(selected.add_chunks(more).select(np.array([False] * len(kept) + [True] * len(more), bool)), more)


@pytest.mark.parametrize("index", [-3, 2])
def test_an_index_beyond_the_end_is_an_error(index):
    table = ChunkTable.collect([Chunk(FILES[0], (0, 4), f"{number:024x}", 4) for number in range(2)])
    with pytest.raises(IndexError):
        table[index]
    with pytest.raises(IndexError):
        table.select(np.ones(2, bool))[index]


def test_plain_chunks_take_26_bytes():
    chunks = (Chunk(FILES[0], (number, number + 1), f"{number:024x}", 1) for number in range(200_000))
    table = ChunkTable.collect(chunks)
    assert table.records.nbytes == 26 * len(table) == 26 * 200_000
    assert not table.objects
    assert table[199_999].span == (199_999, 200_000)
