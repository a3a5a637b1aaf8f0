"""Encodes a prepared slice as one row of Arrow, so that pixels cross the object store once and are read in place.

A slice is one row because Ray never divides a row and plans GPU pools by the rows that a call takes. The arrays of an
item are buffers beside its pickle (protocol 5). An array that several items have, as those of the job's examples, is
there once.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.types import SentItem

PREPARED_SLICE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the name of the slice
        ("whole", pa.bool_()),  # whether it is a whole chunk
        ("spent", pa.binary()),  # the seconds of preparing, by step
        ("entries", pa.list_(pa.large_binary())),
        ("arrays", pa.list_(pa.large_binary())),
        ("places", pa.list_(pa.list_(pa.int32()))),  # of the arrays of each item
    ]
)


def encode_slice(
    name: str, prepared_items: Sequence[SentItem], prepare_seconds: Mapping[str, float], *, is_whole: bool = True
) -> pa.Table:
    pickles: list[bytes] = []
    arrays: dict[int, memoryview] = {}  # by what tells one from another
    numbers: dict[int, int] = {}
    places: list[list[int]] = []
    for item in prepared_items:
        buffers: list[pickle.PickleBuffer] = []
        pickles.append(pickle.dumps(item, protocol=5, buffer_callback=buffers.append))
        views = [buffer.raw() for buffer in buffers]
        arrays |= {id(view.obj): view for view in views}
        places.append([numbers.setdefault(id(view.obj), len(numbers)) for view in views])
    array_list = pa.ListArray.from_arrays([0, len(arrays)], copy_views([*arrays.values()]))
    columns = [[name], [is_whole], [pickle.dumps(prepare_seconds)], [pickles], array_list, [places]]
    return pa.table(columns, schema=PREPARED_SLICE_SCHEMA)


def copy_views(views: Sequence[memoryview]) -> pa.LargeBinaryArray:
    """`pa.array` would never free the memory of the views."""
    offsets = np.cumsum([0, *(view.nbytes for view in views)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(views))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(views), buffers)


def read_name(table: pa.Table) -> str:
    return str(table["key"][0].as_py())


def is_whole_chunk(table: pa.Table) -> bool:
    return bool(table["whole"][0].as_py())


def count_rows(table: pa.Table) -> int:
    return len(table["entries"][0].values)


def decode_slice(table: pa.Table) -> list[SentItem]:
    arrays = [array.as_buffer() for array in table["arrays"][0].values]
    return [
        pickle.loads(item.as_buffer(), buffers=[arrays[place] for place in places])
        for item, places in zip(table["entries"][0].values, table["places"][0].as_py(), strict=True)
    ]


def read_prepare_seconds(table: pa.Table) -> dict[str, float]:
    return dict(pickle.loads(table["spent"][0].as_py()))
