"""Columns inside columns, by path: `image.bytes` of a struct, `meta.vendor` of a column with JSON objects.

A column whose own name holds a dot goes before a path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError


def add_nested_fields(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """The schema with those of the names that are paths into its columns.

    >>> schema = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("meta", pa.string())])
    >>> add_nested_fields(schema, ["image", "image.bytes", "image.size", "meta.a.b", "other.a"]).names
    ['image', 'meta', 'image.bytes', 'meta.a.b']
    """
    for name in dict.fromkeys(names):
        data_type = None if name in schema.names else find_nested_type(schema, name)
        schema = schema if data_type is None else schema.append(pa.field(name, data_type))
    return schema


def find_nested_type(schema: pa.Schema, path: str) -> pa.DataType | None:
    root, *steps = path.split(".")
    if not steps or root not in schema.names:
        return None
    data_type = schema.field(root).type
    for step in steps:
        if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
            return pa.string()
        if not pa.types.is_struct(data_type) or data_type.get_field_index(step) < 0:
            return None
        data_type = data_type.field(step).type
    return data_type


def list_root_columns(names: Iterable[str], available: Sequence[str]) -> list[str]:
    """The columns of a file that hold the named ones."""
    return list(dict.fromkeys(name if name in available else name.partition(".")[0] for name in names))


def add_nested_columns(table: pa.Table, names: Iterable[str], url: str) -> pa.Table:
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, extract_column(table, name, url))
    return table


def extract_column(table: pa.Table, path: str, url: str) -> pa.ChunkedArray:
    root, *steps = path.split(".")
    column = table[root]
    while steps and pa.types.is_struct(column.type):
        column = pc.struct_field(column, [steps.pop(0)])
    if not steps:
        return column
    return pa.chunked_array([[find_json_value(text, steps, path, url) for text in column.to_pylist()]], pa.string())


def find_json_value(text: str | None, steps: Sequence[str], path: str, url: str) -> str | None:
    """Text as it is, other values as JSON text."""
    try:
        value: Any = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        value = text
    for step in steps:
        if value is None:
            return None
        if not isinstance(value, dict):
            shown = str(value)[:60]
            raise JobError(f"{url}: there is no column {path}, for a cell holds {shown!r}, which is no JSON object")
        value = value.get(step)
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
