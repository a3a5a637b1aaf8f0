"""A prepared chunk is one row of Arrow."""

from __future__ import annotations

import weakref

import numpy as np

from pipeline.cluster import chunk_codec
from pipeline.types import Clip, Failure, Item, Request, Turn


def test_a_chunk_is_one_row_and_decodes_to_the_same_items():
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    turns = (Turn("user", (Clip("video", pixels, (9, 9), times=(0.0, 1.0)), "what?")),)
    request = Request("a", turns, np.arange(7, dtype=np.int32), np.zeros((3, 7), np.int32), 4)
    failure = Failure("b", "fetch", "not_found", "no such object")
    table = chunk_codec.encode_slice(
        "key", [(Item("a", "q", ()), request), (Item("b", "q", ()), failure)], {"fetch": 1.5}
    )
    assert (
        table.num_rows,
        chunk_codec.count_rows(table),
        chunk_codec.read_name(table),
        chunk_codec.read_prepare_seconds(table),
    ) == (
        1,
        2,
        "key",
        {"fetch": 1.5},
    )
    (one, asked), (other, failed) = chunk_codec.decode_slice(table)
    assert (one.id, other.id, failed) == ("a", "b", failure)
    assert isinstance(asked, Request)
    assert np.array_equal(asked.clips[0].pixels, pixels)
    assert asked.clips[0].times == (0.0, 1.0)
    assert np.array_equal(asked.input_ids, request.input_ids)


def test_an_array_that_rows_have_in_common_is_there_once():
    shared, own = (np.full((1, 3, 200, 200), value, np.uint8) for value in (1, 2))
    requests = []
    for name, pixels in (("a", shared), ("b", own), ("c", shared)):
        turns = (Turn("user", (Clip("image", shared, (9, 9)), Clip("image", pixels, (9, 9)))),)
        requests.append(Request(name, turns, np.arange(3, dtype=np.int32), np.zeros((3, 3), np.int32), 1))
    table = chunk_codec.encode_slice("key", [(Item(part.id, "q", ()), part) for part in requests], {})
    assert 2 * own.nbytes < table.nbytes < 3 * own.nbytes
    decoded = [[int(clip.pixels.max()) for clip in request.clips] for _, request in chunk_codec.decode_slice(table)]
    assert decoded == [[1, 1], [1, 2], [1, 1]]


def test_a_chunk_without_rows_still_has_a_part_name():
    table = chunk_codec.encode_slice("key", [], {})
    assert (
        table.num_rows,
        chunk_codec.count_rows(table),
        chunk_codec.read_name(table),
        chunk_codec.decode_slice(table),
    ) == (
        1,
        0,
        "key",
        [],
    )


def test_what_was_encoded_is_freed():
    pixels = np.zeros((1, 3, 28, 28), np.uint8)
    turns = (Turn("user", (Clip("image", pixels, (28, 28)),)),)
    request = Request("a", turns, np.arange(3, dtype=np.int32), np.zeros((3, 3), np.int32), 1)
    references = [weakref.ref(array) for array in (pixels, request.input_ids)]
    chunk_codec.encode_slice("key", [(Item("a", "q", ()), request)], {})
    del pixels, turns, request
    assert all(reference() is None for reference in references)
