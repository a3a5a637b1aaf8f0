"""How schemas become Arrow types, and answers their values."""

import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema.columns import JSON_TEXT_METADATA, to_arrow_array, to_arrow_field, to_column_value
from pipeline.schema.json_schema import MAX_REFERENCE_DEPTH, canonicalize_schema
from tests.awkward_schemas import AWKWARD, NONE, TEXT, WHOLE, either, listed, nested_definitions, recursive, struct


def infer_type(node: dict[str, Any]) -> pa.DataType:
    return to_arrow_field(canonicalize_schema(struct(x=node))).type.field("x").type


def is_json(node: dict[str, Any]) -> bool:
    return bool(to_arrow_field(canonicalize_schema(struct(x=node))).type.field("x").metadata == JSON_TEXT_METADATA)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (TEXT, pa.string()),
        (WHOLE, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        (TEXT | {"format": "date"}, pa.date32()),
        (TEXT | {"format": "date-time"}, pa.timestamp("us", tz="UTC")),
        (TEXT | {"format": "decimal"}, pa.decimal128(24, 6)),
        (TEXT | {"format": "uuid"}, pa.string()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"const": 3}, pa.int64()),
        (either(WHOLE, NONE), pa.int64()),
        ({"type": ["string", "null"]}, pa.string()),
        (either(WHOLE, {"type": "number"}), pa.float64()),
        (either(TEXT | {"maxLength": 3}, {"enum": ["long one"]}), pa.string()),
        (listed(WHOLE), pa.list_(pa.int64())),
        ({"type": "array", "prefixItems": [WHOLE, WHOLE]}, pa.list_(pa.int64())),
        ({"type": "object", "additionalProperties": WHOLE}, pa.map_(pa.string(), pa.int64())),
        (either(struct(a=WHOLE), struct(a=WHOLE, b=TEXT)), pa.struct({"a": pa.int64(), "b": pa.string()})),
        (struct(y=struct(z=listed(TEXT))), pa.struct({"y": pa.struct({"z": pa.list_(pa.string())})})),
    ],
)
def test_a_schema_gives_its_arrow_type(node: dict[str, Any], expected: pa.DataType) -> None:
    assert infer_type(node) == expected
    assert not is_json(node)


@pytest.mark.parametrize(
    "node",
    [
        {},
        either(TEXT, WHOLE),
        {"type": "array", "prefixItems": [TEXT, WHOLE]} | {"x": 0},
        struct(a=TEXT) | {"additionalProperties": WHOLE},
        NONE,
    ],
)
def test_a_schema_without_a_fixed_shape_becomes_json_text(node: dict[str, Any]) -> None:
    found = to_arrow_field(canonicalize_schema(struct(x=node))).type.field("x")
    inner = found.type.value_field if pa.types.is_list(found.type) else found
    assert inner.type == pa.string()
    assert inner.metadata == JSON_TEXT_METADATA


def test_a_recursive_schema_is_typed_for_one_level() -> None:
    tree = to_arrow_field(canonicalize_schema(recursive(struct(value=WHOLE, kids=listed({"$ref": "#/$defs/Node"})))))
    assert tree.type == pa.struct({"value": pa.int64(), "kids": pa.list_(pa.string())})
    value = to_column_value({"value": 1, "kids": [{"value": 2, "kids": []}]}, tree)
    assert json.loads(value["kids"][0]) == {"value": 2, "kids": []}


@pytest.mark.parametrize(
    ("levels", "fields", "typed_levels"),
    [
        pytest.param(30, 4, 5, id="4 ** 6 columns would be too many"),
        pytest.param(300, 1, MAX_REFERENCE_DEPTH, id="Python cannot go as deep as the definitions"),
    ],
)
def test_definitions_are_typed_as_deep_as_columns_allow(levels: int, fields: int, typed_levels: int) -> None:
    answer = to_arrow_field(canonicalize_schema(nested_definitions(levels, fields)))
    level, depth = answer, 0
    while pa.types.is_struct(level.type):
        assert level.type.field("name").type == pa.string()
        level, depth = level.type.field("part_0"), depth + 1
    assert level.metadata == JSON_TEXT_METADATA
    assert depth == typed_levels


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("12.50", pa.decimal128(24, 6), Decimal("12.500000")),
        (12.1, pa.decimal128(24, 2), Decimal("12.10")),
        ("2026-03-02", pa.date32(), date(2026, 3, 2)),
        ("2026-03-02T10:00:00+02:00", pa.timestamp("us", tz="UTC"), datetime(2026, 3, 2, 8, tzinfo=UTC)),
        ("2026-03-02T10:00:00", pa.timestamp("us", tz="UTC"), datetime(2026, 3, 2, 10, tzinfo=UTC)),
        (3, pa.float64(), 3.0),
        (3.0, pa.int64(), 3),
        (None, pa.int64(), None),
    ],
)
def test_to_column_value(value: object, kind: pa.DataType, expected: object) -> None:
    found = to_column_value(value, pa.field("x", kind))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("name", AWKWARD)
def test_empty_all_null_and_full_parts_have_the_same_types_in_parquet(name: str) -> None:
    answer = to_arrow_field(canonicalize_schema(AWKWARD[name]))
    types = []
    for values in ([], [None, None]):
        buffer = io.BytesIO()
        pq.write_table(pa.table([to_arrow_array(values, answer)], pa.schema([answer])), buffer)
        types.append(pq.read_table(buffer).schema.field("answer").type)
    assert types[0] == types[1] == answer.type
