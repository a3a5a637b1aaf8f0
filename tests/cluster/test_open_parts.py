"""Slices wait in order, and a part can be committed when all its slices are answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.cluster.open_parts import OpenParts, PlacedRows
from pipeline.cluster.slice_queue import SliceQueue
from pipeline.manifest.chunks import Chunk, Slice
from pipeline.manifest.files import ManifestFile
from pipeline.types import RetryHistory

FILE = ManifestFile("m.parquet", "parquet")


def build_chunk(number: int, slice_lengths: list[int]) -> Chunk:
    slices = tuple(Slice((0, length), f"slice {number}.{index}", length) for index, length in enumerate(slice_lengths))
    return Chunk(FILE, (0, 0), f"{number:024x}", sum(slice_lengths), slices=slices if len(slices) > 1 else ())


@pytest.fixture
def chunks():
    return [build_chunk(1, [4, 4, 2]), build_chunk(2, [4]), build_chunk(3, [4, 4])]


def test_slices_come_in_the_order_of_the_manifest_and_go_back_to_the_front(chunks):
    queue = SliceQueue(chunks, 4)
    assert len(queue) == 6
    first = queue.take(2)
    assert [own.rows.rows_hash for own in first] == ["slice 1.0", "slice 1.1"]
    assert len(queue) == 4
    queue.put_back(first)
    assert len(queue) == 6
    taken = queue.take(10)
    assert [own.chunk.name for own in taken] == [chunks[index].name for index in (0, 0, 0, 1, 2, 2)]
    assert [own.is_whole for own in taken] == [False, False, False, True, False, False]
    assert len({own.name for own in taken}) == 6
    assert taken[3].name == chunks[1].part_name
    assert len(queue) == 0
    assert queue.take(1) == ()


def test_a_slice_asks_what_the_chunk_asks_of_its_rows(chunks):
    chunk = replace(chunks[0], excluded_offsets=(1, 4, 5, 6, 7, 9), answered_offsets=(0,))
    first, last = chunk.cut(4)
    assert (first.excluded_offsets, first.answered_offsets, first.asked_row_count) == ((1,), (0,), 2)
    assert (last.rows_hash, last.excluded_offsets, last.asked_row_count) == ("slice 1.2", (1,), 1)
    (whole, alone), queue = chunks[1].cut(4) * 2, SliceQueue([replace(chunks[2], excluded_offsets=(0, 1, 2, 3))], 4)
    assert whole is alone is chunks[1]
    (only_slice,) = queue.take(9)
    assert only_slice.is_whole, "it holds all rows of its part"
    assert only_slice.name == only_slice.chunk.part_name != only_slice.rows.part_name


def test_a_retry_is_cut_by_the_rows_that_it_asks(chunks):
    histories = tuple((f"r{number}", RetryHistory(1)) for number in range(9))
    retry = replace(chunks[0], generation=2, retry_histories=histories)
    queue = SliceQueue([retry], 4)
    assert len(queue) == 3
    taken = queue.take(3)
    assert [own.rows.asked_row_count for own in taken] == [4, 4, 1]
    assert sum((own.rows.retry_histories for own in taken), ()) == histories
    assert {(own.rows.rows_hash, own.rows.span) for own in taken} == {(retry.rows_hash, retry.span)}


def test_a_part_waits_for_its_last_slice_and_is_committed_in_order(chunks):
    first, second, third, _, *others = SliceQueue(chunks, 4).take(6)
    parts = OpenParts()
    for own in (third, others[1], first):
        parts.add(own, PlacedRows(own.name, 0))
    assert (parts.waiting, parts.row_count) == ([], 10)
    parts.add(second, PlacedRows(second.name, 0))
    (task,) = parts.waiting
    assert (task.part_name, task.is_complete) == (chunks[0].part_name, True)
    assert [rows.block for rows in task.rows] == [first.name, second.name, third.name]
    parts.finish(parts.waiting.pop())
    assert parts.row_count == 4
    parts.give_up_missing_slices()
    (task,) = parts.waiting
    assert (task.part_name, task.is_complete, list(task.slices)) == (chunks[2].part_name, False, [others[1]])
    assert not parts.parts
