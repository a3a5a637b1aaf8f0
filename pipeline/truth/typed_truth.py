"""Gives true answers the types of a schema's columns: people's files have numbers as text, and boxes as fractions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.json_values import parse_json_text
from pipeline.schema.columns import JSON_TEXT_METADATA, to_column_value


def type_truth(value: Any, field: pa.Field, row_id: str) -> Any:
    """OutputError for a value that the column cannot hold."""
    try:
        return to_column_value(to_json_value(value, field), field)
    except (ValueError, ArithmeticError, TypeError, AttributeError, KeyError) as error:
        raise OutputError(f"the truth of row {row_id}: {value!r:.200} does not fit {field.type} ({error})") from error


def to_json_value(value: Any, field: pa.Field) -> Any:
    """A value as a model would write it for the column. Members that the column does not have are left out.

    >>> to_json_value({"n": "2.0", "box": [1.2], "x": 1}, pa.field("", pa.struct({"n": pa.int64(), "ok": pa.bool_()})))
    {'n': 2.0, 'ok': None}
    """
    kinds, data_type = pa.types, field.type
    if value is None or (value == "" and not kinds.is_string(data_type)):
        return None
    if field.metadata == JSON_TEXT_METADATA:
        return parse_json_text(value)
    if kinds.is_struct(data_type):
        members = parse_json_text(value)
        return {part.name: to_json_value(members.get(part.name), part) for part in data_type}
    if kinds.is_list(data_type):
        elements = parse_json_text(value)
        elements = elements if isinstance(elements, list) else [elements]
        kept = [each for each in elements if not (isinstance(each, Mapping) and each.get("iscrowd"))]
        return [to_json_value(each, data_type.value_field) for each in kept]
    if kinds.is_map(data_type):
        pairs = parse_json_text(value)
        return {key: to_json_value(part, data_type.item_field) for key, part in dict(pairs).items()}
    return to_json_scalar(value, data_type)


def to_json_scalar(value: Any, data_type: pa.DataType) -> Any:
    kinds = pa.types
    if kinds.is_boolean(data_type):
        return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
    if kinds.is_integer(data_type) or kinds.is_floating(data_type):
        return float(value)
    if kinds.is_string(data_type):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value.isoformat() if isinstance(value, date) else str(value)  # to_column_value parses dates and decimals
