"""A canonical JSON Schema -> the Arrow field of its answers, and each answer in that field's Python values.

The type follows from the schema alone, so a part without answers, or with nulls only, has the same columns as
any other. What has no fixed shape (recursion, unions of unlike things, free-form JSON) is kept as JSON text, in a
string field whose metadata says `json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import pyarrow as pa

from pipeline.schema.json_schema import SchemaNode, resolve_ref

SCALAR_TYPES = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
    "null": pa.null(),
}
FORMAT_TYPES = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}
JSON_TEXT_METADATA = {b"json": b"text"}
DECIMAL_CONTEXT = Context(prec=76)  # digits: more than any column of decimals


def to_arrow_field(schema: SchemaNode, name: str = "answer") -> pa.Field:
    """The column of a schema's answers. Everything may be null: an answer may leave out what is optional."""
    shape = _build_field(schema, schema, ())
    if shape is None or pa.types.is_null(shape.type):
        return pa.field(name, pa.string(), metadata=JSON_TEXT_METADATA)
    return shape.with_name(name)


def to_arrow_array(values: Sequence[Any], arrow_field: pa.Field) -> pa.Array:
    """Answers (None where there is none) as an Arrow array of exactly this type."""
    return pa.array(values, arrow_field.type)


def to_column_value(value: Any, arrow_field: pa.Field) -> Any:
    """A JSON value as the Python value that Arrow stores without conversion; ValueError where it does not fit.

    >>> exact("12.50", pa.field("total", pa.decimal128(24, 6)))
    Decimal('12.500000')
    """
    kind = arrow_field.type
    if value is None:
        return None
    if arrow_field.metadata == JSON_TEXT_METADATA:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if pa.types.is_struct(kind):
        return {inner.name: to_column_value(value.get(inner.name), inner) for inner in kind}
    if pa.types.is_map(kind):
        return [(key, to_column_value(part, kind.item_field)) for key, part in value.items()]
    if pa.types.is_list(kind):
        return [to_column_value(part, kind.value_field) for part in value]
    return _to_scalar(value, kind)


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
        return _require_fit(
            round(value), -(2**63) <= value < 2**63
        )  # geometry gives fractions of what was written as 3.0
    if pa.types.is_floating(data_type):
        return _require_fit(float(value), math.isfinite(value))
    return value


def _require_fit(number: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(f"the number {number} is too large")
    return number


def _build_field(node: Any, root: SchemaNode, parent_refs: tuple[str, ...]) -> pa.Field | None:
    """The field of one schema, without a name; None where it has no fixed shape."""
    if not isinstance(node, dict) or node.get("$ref") in parent_refs:
        return None
    parent_refs = (*parent_refs, node["$ref"]) if "$ref" in node else parent_refs
    node = resolve_ref(node, root)
    if "anyOf" in node or "oneOf" in node:
        parts = [_build_field(part, root, parent_refs) for part in node.get("anyOf", node.get("oneOf"))]
        return None if "properties" in node else _unify_fields(parts)
    if "enum" in node or "const" in node:
        return _unify_fields([_infer_constant_field(value) for value in node.get("enum", [node.get("const")])])
    kinds = node.get("type", ())
    return _unify_fields(
        [_build_typed_field(kind, node, root, parent_refs) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    )


def _build_typed_field(kind: str, node: SchemaNode, root: SchemaNode, parent_refs: tuple[str, ...]) -> pa.Field | None:
    if kind == "object":
        return _build_object_field(node, root, parent_refs)
    if kind == "array":
        first = [_build_field(part, root, parent_refs) for part in node.get("prefixItems", ())]
        rest = [_build_field(node["items"], root, parent_refs)] if node.get("items") else []
        inner = _unify_fields(first + rest)
        return _build_unnamed_field(pa.list_(_name_field("element", inner)))
    if kind == "string" and "x-decimal" in node:
        return _build_unnamed_field(pa.decimal128(*node["x-decimal"]))
    return _build_unnamed_field(
        FORMAT_TYPES.get(node.get("format", ""), SCALAR_TYPES[kind]) if kind == "string" else SCALAR_TYPES[kind]
    )


def _build_object_field(node: SchemaNode, root: SchemaNode, parent_refs: tuple[str, ...]) -> pa.Field | None:
    properties, others = node.get("properties", {}), node.get("additionalProperties")
    if "patternProperties" in node or (properties and others):
        return None
    if properties:
        return _build_unnamed_field(
            pa.struct([_name_field(name, _build_field(part, root, parent_refs)) for name, part in properties.items()])
        )
    return (
        _build_unnamed_field(pa.map_(pa.string(), _name_field("value", _build_field(others, root, parent_refs))))
        if others
        else None
    )


def _unify_fields(fields: Sequence[pa.Field | None]) -> pa.Field | None:
    """One shape that holds what any of these hold; None where they are unlike."""
    if not fields or any(part is None for part in fields):
        return None
    known = [part for part in fields if part is not None and not pa.types.is_null(part.type)]
    if not known:
        return _build_unnamed_field(pa.null())
    result = known[0]
    for part in known[1:]:
        merged = _merge_fields(result, part)
        if merged is None:
            return None
        result = merged
    return result


def _merge_fields(one: pa.Field, other: pa.Field) -> pa.Field | None:
    if one.equals(other, check_metadata=True):
        return one
    if pa.types.is_struct(one.type) and pa.types.is_struct(other.type):
        names = dict.fromkeys([*(part.name for part in one.type), *(part.name for part in other.type)])
        return _build_unnamed_field(pa.struct([_merge_members(name, one.type, other.type) for name in names]))
    if {one.type, other.type} == {pa.int64(), pa.float64()}:
        return _build_unnamed_field(pa.float64())
    return None


def _merge_members(name: str, one: pa.StructType, other: pa.StructType) -> pa.Field:
    found = [kind.field(name) for kind in (one, other) if kind.get_field_index(name) >= 0]
    return _name_field(name, _unify_fields([part.with_name("") for part in found]))


def _infer_constant_field(value: Any) -> pa.Field | None:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return _build_unnamed_field(SCALAR_TYPES[names[type(value)]]) if type(value) in names else None


def _build_unnamed_field(data_type: pa.DataType) -> pa.Field:
    return pa.field("", data_type)


def _name_field(name: str, unnamed_field: pa.Field | None) -> pa.Field:
    if unnamed_field is None or pa.types.is_null(unnamed_field.type):
        return pa.field(name, pa.string(), metadata=JSON_TEXT_METADATA)
    return unnamed_field.with_name(name)
