"""Encodes a prepared chunk as one row of Arrow, so that pixels cross the object store once and are read in place.

A chunk is one row because Ray never divides a row and plans GPU pools by the rows that a call takes. The arrays of an
item are buffers beside its pickle (protocol 5).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.types import PreparedItem

PREPARED_CHUNK_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the name of the part
        ("spent", pa.binary()),  # the seconds of preparing, by step
        ("entries", pa.list_(pa.large_binary())),
        ("arrays", pa.list_(pa.list_(pa.large_binary()))),
    ]
)


def encode_chunk(
    part_name: str, prepared_items: Sequence[PreparedItem], prepare_seconds: Mapping[str, float]
) -> pa.Table:
    pickles: list[bytes] = []
    arrays: list[list[memoryview]] = []
    for item in prepared_items:
        buffers: list[pickle.PickleBuffer] = []
        pickles.append(pickle.dumps(item, protocol=5, buffer_callback=buffers.append))
        arrays.append([buffer.raw() for buffer in buffers])
    columns = [[part_name], [pickle.dumps(prepare_seconds)], [pickles], [arrays]]
    return pa.table(columns, schema=PREPARED_CHUNK_SCHEMA)


def read_part_name(table: pa.Table) -> str:
    return str(table["key"][0].as_py())


def count_rows(table: pa.Table) -> int:
    return len(table["entries"][0].values)


def decode_chunk(table: pa.Table) -> list[PreparedItem]:
    return [
        pickle.loads(item.as_buffer(), buffers=[array.as_buffer() for array in arrays.values])
        for item, arrays in zip(table["entries"][0].values, table["arrays"][0].values, strict=True)
    ]


def read_prepare_seconds(table: pa.Table) -> dict[str, float]:
    return dict(pickle.loads(table["spent"][0].as_py()))
