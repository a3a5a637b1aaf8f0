"""Values of a table in the few types that JSON and CSV have."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def list_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Maps with text as keys become objects. Without looking for them, pyarrow takes a third of the time.

    >>> list_rows(pa.table({"a": pa.array([[[("k", 1)]]], pa.list_(pa.map_(pa.string(), pa.int8())))}))
    [{'a': [{'k': 1}]}]
    """
    maps = "lossy" if any(map(holds_map, table.schema.types)) else None
    rows: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts=maps)
    return rows


def holds_map(type_: pa.DataType) -> bool:
    return pa.types.is_map(type_) or any(holds_map(type_.field(index).type) for index in range(type_.num_fields))


def encode_json(value: Any) -> str:
    """
    >>> encode_json({"mean": float("nan"), "total": Decimal("1.50"), "day": date(2026, 11, 29), "data": b"a"})
    '{"mean": null, "total": 1.5, "day": "2026-11-29", "data": "YQ=="}'
    """
    try:
        return JSON_ENCODER.encode(value)
    except ValueError:
        return json.dumps(remove_nan(value), ensure_ascii=False, default=make_plain)


def make_plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal) and Decimal(repr(number := float(value))) == value:  # no digit is lost
        return number
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def remove_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: remove_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [remove_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


JSON_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=make_plain)  # making one takes long


def flatten_table(table: pa.Table) -> pa.Table:
    """A column for each field of a struct, `answer.total`; lists, maps and bytes as JSON text."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        columns |= dict(flatten_column(name, table[name]))
    return pa.table(columns)


def flatten_column(name: str, column: pa.ChunkedArray) -> Iterator[tuple[str, pa.ChunkedArray]]:
    if pa.types.is_struct(column.type):
        for field in column.type:
            yield from flatten_column(f"{name}.{field.name}", pc.struct_field(column, [field.name]))
    elif pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        rows = list_rows(pa.table({name: column}))
        yield name, pa.chunked_array([[encode_cell(row[name]) for row in rows]], pa.string())
    else:
        yield name, column


def encode_cell(value: Any) -> str | None:
    if value is None:
        return None
    plain = make_plain(value) if isinstance(value, bytes) else encode_json(value)
    return str(plain)
