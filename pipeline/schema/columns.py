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

from pipeline.schema.json_schema import Node, resolve

SCALARS = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
    "null": pa.null(),
}
FORMATS = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}
JSON_TEXT = {b"json": b"text"}
EXACTLY = Context(prec=76)  # digits: more than any column of decimals


def field(schema: Node, name: str = "answer") -> pa.Field:
    """The column of a schema's answers. Everything may be null: an answer may leave out what is optional."""
    shape = _shape(schema, schema, ())
    if shape is None or pa.types.is_null(shape.type):
        return pa.field(name, pa.string(), metadata=JSON_TEXT)
    return shape.with_name(name)


def column(values: Sequence[Any], answer: pa.Field) -> pa.Array:
    """Answers (None where there is none) as an Arrow array of exactly this type."""
    return pa.array(values, answer.type)


def exact(value: Any, target: pa.Field) -> Any:
    """A JSON value as the Python value that Arrow stores without conversion; ValueError where it does not fit.

    >>> exact("12.50", pa.field("total", pa.decimal128(24, 6)))
    Decimal('12.500000')
    """
    kind = target.type
    if value is None:
        return None
    if target.metadata == JSON_TEXT:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if pa.types.is_struct(kind):
        return {inner.name: exact(value.get(inner.name), inner) for inner in kind}
    if pa.types.is_map(kind):
        return [(key, exact(part, kind.item_field)) for key, part in value.items()]
    if pa.types.is_list(kind):
        return [exact(part, kind.value_field) for part in value]
    return _scalar(value, kind)


def _scalar(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_decimal(kind):
        number = Decimal(str(value)).quantize(Decimal(1).scaleb(-kind.scale), ROUND_HALF_EVEN, EXACTLY)
        return _fitting(number, abs(number) < 10 ** (kind.precision - kind.scale))
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if pa.types.is_integer(kind):
        return _fitting(round(value), -(2**63) <= value < 2**63)  # geometry gives fractions of what was written as 3.0
    if pa.types.is_floating(kind):
        return _fitting(float(value), math.isfinite(value))
    return value


def _fitting(number: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(f"the number {number} is too large")
    return number


def _shape(node: Any, root: Node, above: tuple[str, ...]) -> pa.Field | None:
    """The field of one schema, without a name; None where it has no fixed shape."""
    if not isinstance(node, dict) or node.get("$ref") in above:
        return None
    above = (*above, node["$ref"]) if "$ref" in node else above
    node = resolve(node, root)
    if "anyOf" in node or "oneOf" in node:
        parts = [_shape(part, root, above) for part in node.get("anyOf", node.get("oneOf"))]
        return None if "properties" in node else _either(parts)
    if "enum" in node or "const" in node:
        return _either([_of(value) for value in node.get("enum", [node.get("const")])])
    kinds = node.get("type", ())
    return _either([_typed(kind, node, root, above) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _typed(kind: str, node: Node, root: Node, above: tuple[str, ...]) -> pa.Field | None:
    if kind == "object":
        return _object(node, root, above)
    if kind == "array":
        first = [_shape(part, root, above) for part in node.get("prefixItems", ())]
        rest = [_shape(node["items"], root, above)] if node.get("items") else []
        inner = _either(first + rest)
        return _bare(pa.list_(_named("element", inner)))
    if kind == "string" and "x-decimal" in node:
        return _bare(pa.decimal128(*node["x-decimal"]))
    return _bare(FORMATS.get(node.get("format", ""), SCALARS[kind]) if kind == "string" else SCALARS[kind])


def _object(node: Node, root: Node, above: tuple[str, ...]) -> pa.Field | None:
    properties, others = node.get("properties", {}), node.get("additionalProperties")
    if "patternProperties" in node or (properties and others):
        return None
    if properties:
        return _bare(pa.struct([_named(name, _shape(part, root, above)) for name, part in properties.items()]))
    return _bare(pa.map_(pa.string(), _named("value", _shape(others, root, above)))) if others else None


def _either(parts: Sequence[pa.Field | None]) -> pa.Field | None:
    """One shape that holds what any of these hold; None where they are unlike."""
    if not parts or any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None and not pa.types.is_null(part.type)]
    if not known:
        return _bare(pa.null())
    result = known[0]
    for part in known[1:]:
        merged = _merge(result, part)
        if merged is None:
            return None
        result = merged
    return result


def _merge(one: pa.Field, other: pa.Field) -> pa.Field | None:
    if one.equals(other, check_metadata=True):
        return one
    if pa.types.is_struct(one.type) and pa.types.is_struct(other.type):
        names = dict.fromkeys([*(part.name for part in one.type), *(part.name for part in other.type)])
        return _bare(pa.struct([_both(name, one.type, other.type) for name in names]))
    if {one.type, other.type} == {pa.int64(), pa.float64()}:
        return _bare(pa.float64())
    return None


def _both(name: str, one: pa.StructType, other: pa.StructType) -> pa.Field:
    found = [kind.field(name) for kind in (one, other) if kind.get_field_index(name) >= 0]
    return _named(name, _either([part.with_name("") for part in found]))


def _of(value: Any) -> pa.Field | None:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return _bare(SCALARS[names[type(value)]]) if type(value) in names else None


def _bare(kind: pa.DataType) -> pa.Field:
    return pa.field("", kind)


def _named(name: str, shape: pa.Field | None) -> pa.Field:
    if shape is None or pa.types.is_null(shape.type):
        return pa.field(name, pa.string(), metadata=JSON_TEXT)
    return shape.with_name(name)
