"""Converts a canonical JSON Schema to an Arrow field, and answers to the Python values of that field.

The type follows from the schema alone, so every part has the same columns, even one without answers. A schema without
a fixed shape (recursion, a union of different types, free-form JSON) becomes JSON text, in a string field whose
metadata says `json`. So do definitions that are nested so deep that they would multiply to many thousands of columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import pyarrow as pa

from pipeline.schema.json_schema import SchemaCursor, SchemaNode, walk_references

SCALAR_TYPES = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
    "null": pa.null(),
}
FORMAT_TYPES = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}
JSON_TEXT_METADATA = {b"json": b"text"}
TYPE_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
DECIMAL_CONTEXT = Context(prec=76)  # more digits than any decimal column has


def to_arrow_field(schema: SchemaNode, name: str = "answer") -> pa.Field:
    """The column of a schema's answers. Every field is nullable, since answers may omit optional properties."""
    return _name_field(name, walk_references(schema, _build_field))


def to_arrow_array(values: Sequence[Any], arrow_field: pa.Field) -> pa.Array:
    return pa.array(values, arrow_field.type)


def to_column_value(value: Any, arrow_field: pa.Field) -> Any:
    """Convert a JSON value to the Python value that Arrow stores exactly; ValueError if it does not fit.

    >>> to_column_value("12.50", pa.field("total", pa.decimal128(24, 6)))
    Decimal('12.500000')
    """
    data_type = arrow_field.type
    if value is None:
        return None
    if arrow_field.metadata == JSON_TEXT_METADATA:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if pa.types.is_struct(data_type):
        return {inner.name: to_column_value(value.get(inner.name), inner) for inner in data_type}
    if pa.types.is_map(data_type):
        return [(key, to_column_value(part, data_type.item_field)) for key, part in value.items()]
    if pa.types.is_list(data_type):
        return [to_column_value(part, data_type.value_field) for part in value]
    return _to_scalar(value, data_type)


def _to_scalar(value: Any, data_type: pa.DataType) -> Any:
    if pa.types.is_decimal(data_type):
        number = Decimal(str(value)).quantize(Decimal(1).scaleb(-data_type.scale), ROUND_HALF_EVEN, DECIMAL_CONTEXT)
        return _require_fit(number, abs(number) < 10 ** (data_type.precision - data_type.scale))
    if pa.types.is_date(data_type):
        return date.fromisoformat(value)
    if pa.types.is_timestamp(data_type):
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if pa.types.is_integer(data_type):
        # Geometry returns a fraction where the model wrote 3.0.
        return _require_fit(round(value), -(2**63) <= value < 2**63)
    if pa.types.is_floating(data_type):
        return _require_fit(float(value), math.isfinite(value))
    return value


def _require_fit(number: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(f"the number {number} is too large")
    return number


def _build_field(schema: SchemaCursor | None) -> pa.Field | None:
    """The unnamed field of a schema; None where it has no fixed shape."""
    if schema is None:
        return None
    if schema.alternatives:
        fields = [_build_field(alternative) for alternative in schema.alternatives]
        return None if "properties" in schema.node else _unify_fields(fields)
    if schema.constants is not None:
        return _unify_fields([_infer_constant_field(value) for value in schema.constants])
    return _unify_fields([_build_typed_field(type_name, schema) for type_name in schema.types])


def _build_typed_field(type_name: str, schema: SchemaCursor) -> pa.Field | None:
    node = schema.node
    if type_name == "object":
        return _build_object_field(schema)
    if type_name == "array":
        element_schemas = schema.prefix_items + ([schema.items] if node.get("items") else [])
        element = _unify_fields([_build_field(element_schema) for element_schema in element_schemas])
        return _build_unnamed_field(pa.list_(_name_field("element", element)))
    if type_name == "string" and "x-decimal" in node:
        return _build_unnamed_field(pa.decimal128(*node["x-decimal"]))
    scalar_type = SCALAR_TYPES[type_name]
    return _build_unnamed_field(
        FORMAT_TYPES.get(node.get("format", ""), scalar_type) if type_name == "string" else scalar_type
    )


def _build_object_field(schema: SchemaCursor) -> pa.Field | None:
    """A struct for named properties, a map for free keys; None for a mixture."""
    properties, other_values = schema.properties, schema.node.get("additionalProperties")
    if "patternProperties" in schema.node or (properties and other_values):
        return None
    if properties:
        members = [_name_field(name, _build_field(member)) for name, member in properties.items()]
        return _build_unnamed_field(pa.struct(members))
    if other_values:
        value_field = _name_field("value", _build_field(schema.enter(other_values)))
        return _build_unnamed_field(pa.map_(pa.string(), value_field))
    return None


def _unify_fields(fields: Sequence[pa.Field | None]) -> pa.Field | None:
    """One field that holds the values of all; None where they do not go together."""
    if not fields:
        return None
    unified = _build_unnamed_field(pa.null())
    for field in fields:
        merged = None if field is None else _merge_fields(unified, field)
        if merged is None:
            return None
        unified = merged
    return unified


def _merge_fields(one: pa.Field, other: pa.Field) -> pa.Field | None:
    if pa.types.is_null(one.type) or one.equals(other, check_metadata=True):
        return other
    if pa.types.is_null(other.type):
        return one
    if pa.types.is_struct(one.type) and pa.types.is_struct(other.type):
        names = dict.fromkeys([*(part.name for part in one.type), *(part.name for part in other.type)])
        return _build_unnamed_field(pa.struct([_merge_members(name, one.type, other.type) for name in names]))
    if {one.type, other.type} == {pa.int64(), pa.float64()}:
        return _build_unnamed_field(pa.float64())
    return None


def _merge_members(name: str, one: pa.StructType, other: pa.StructType) -> pa.Field:
    members = [struct.field(name) for struct in (one, other) if struct.get_field_index(name) >= 0]
    return _name_field(name, _unify_fields([member.with_name("") for member in members]))


def _infer_constant_field(value: Any) -> pa.Field | None:
    name = TYPE_NAMES.get(type(value))
    return _build_unnamed_field(SCALAR_TYPES[name]) if name else None


def _build_unnamed_field(data_type: pa.DataType) -> pa.Field:
    return pa.field("", data_type)


def _name_field(name: str, unnamed_field: pa.Field | None) -> pa.Field:
    if unnamed_field is None or pa.types.is_null(unnamed_field.type):
        return pa.field(name, pa.string(), metadata=JSON_TEXT_METADATA)
    return unnamed_field.with_name(name)
