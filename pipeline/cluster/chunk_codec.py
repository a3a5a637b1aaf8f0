"""Prepared entries <-> one row of Arrow, so that pixels cross the object store once, uncopied on arrival.

A chunk is one row: Ray never divides a row, and where it is asked for GPUs it wants to know how many rows a call takes.
Everything but the arrays is pickled; the arrays travel beside as buffers (pickle protocol 5) and are read in place.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.types import Entry

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("spent", pa.binary()),
        ("entries", pa.list_(pa.large_binary())),
        ("arrays", pa.list_(pa.list_(pa.large_binary()))),
    ]
)


def pack(chunk: str, entries: Sequence[Entry], seconds: Mapping[str, float]) -> pa.Table:
    """`seconds`: what preparing took, by step."""
    heads: list[bytes] = []
    arrays: list[list[memoryview]] = []
    for entry in entries:
        buffers: list[pickle.PickleBuffer] = []
        heads.append(pickle.dumps(entry, protocol=5, buffer_callback=buffers.append))
        arrays.append([buffer.raw() for buffer in buffers])
    return pa.table([[chunk], [pickle.dumps(seconds)], [heads], [arrays]], schema=SCHEMA)


def key(table: pa.Table) -> str:
    return str(table["key"][0].as_py())


def rows(table: pa.Table) -> int:
    return len(table["entries"][0].values)


def unpack(table: pa.Table) -> list[Entry]:
    return [
        pickle.loads(head.as_buffer(), buffers=[one.as_buffer() for one in arrays.values])
        for head, arrays in zip(table["entries"][0].values, table["arrays"][0].values, strict=True)
    ]


def spent(table: pa.Table) -> dict[str, float]:
    return dict(pickle.loads(table["spent"][0].as_py()))
