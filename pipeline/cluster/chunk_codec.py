"""Prepared entries <-> one row of Arrow, so that pixels cross the object store once, uncopied on arrival.

A chunk is one row: Ray never divides a row, and where it is asked for GPUs it wants to know how many rows a call takes.
Everything but the arrays is pickled; the arrays travel beside as buffers (pickle protocol 5) and are read in place.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.types import PreparedItem

PREPARED_CHUNK_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("spent", pa.binary()),
        ("entries", pa.list_(pa.large_binary())),
        ("arrays", pa.list_(pa.list_(pa.large_binary()))),
    ]
)


def encode_chunk(
    part_name: str, prepared_items: Sequence[PreparedItem], prepare_seconds: Mapping[str, float]
) -> pa.Table:
    """`seconds`: what preparing took, by step."""
    heads: list[bytes] = []
    arrays: list[list[memoryview]] = []
    for entry in prepared_items:
        buffers: list[pickle.PickleBuffer] = []
        heads.append(pickle.dumps(entry, protocol=5, buffer_callback=buffers.append))
        arrays.append([buffer.raw() for buffer in buffers])
    return pa.table([[part_name], [pickle.dumps(prepare_seconds)], [heads], [arrays]], schema=PREPARED_CHUNK_SCHEMA)


def read_part_name(table: pa.Table) -> str:
    return str(table["key"][0].as_py())


def count_rows(table: pa.Table) -> int:
    return len(table["entries"][0].values)


def decode_chunk(table: pa.Table) -> list[PreparedItem]:
    return [
        pickle.loads(head.as_buffer(), buffers=[one.as_buffer() for one in arrays.values])
        for head, arrays in zip(table["entries"][0].values, table["arrays"][0].values, strict=True)
    ]


def read_prepare_seconds(table: pa.Table) -> dict[str, float]:
    return dict(pickle.loads(table["spent"][0].as_py()))
