"""The contract of every schema in the registry."""

import json
import pickle
import re
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import registry
from pipeline.schema.columns import to_arrow_array
from pipeline.schema.schema import Schema
from pipeline.schema.schema_loader import build_default_prompt, find_problems, load_schema
from pipeline.schema.validate import validate_answer


@pytest.fixture(params=registry.SCHEMAS)
def schema(request: pytest.FixtureRequest) -> Schema:
    schema = load_schema(request.param, base_folder=Path())
    assert schema is not None
    return schema


def test_it_is_pickled_by_name(schema: Schema) -> None:
    assert schema.source == ""
    assert pickle.loads(pickle.dumps(schema)) == schema


def test_the_grammar_can_enforce_it(schema: Schema) -> None:
    assert find_problems(schema) == []


def test_its_example_is_valid(schema: Schema) -> None:
    value, violations = validate_answer(schema.example, schema)
    assert violations == ()
    assert to_arrow_array([value, None], schema.answer_field).null_count == 1


def test_its_prompt_describes_every_field_and_shows_the_example(schema: Schema) -> None:
    text = build_default_prompt(schema)
    assert text.startswith(str(schema.default_prompt))
    for name in re.findall(r'"([a-z_0-9]+)":\{', schema.text):
        assert (
            name in ("properties", "items") or name.startswith("$") or re.search(rf"^ *{name}: .+", text, re.MULTILINE)
        )
    assert json.dumps(schema.example, ensure_ascii=False, separators=(",", ":")) in text


def test_every_field_is_typed(schema: Schema) -> None:
    def list_inner_fields(kind: pa.DataType) -> list[pa.Field]:
        inner = list(kind) if pa.types.is_struct(kind) else [kind.value_field] if pa.types.is_list(kind) else []
        return inner + [deeper for part in inner for deeper in list_inner_fields(part.type)]

    assert [part.name for part in list_inner_fields(schema.answer_field.type) if part.metadata] == []


def test_its_module_docstring_lists_its_columns(schema: Schema) -> None:
    module = import_module(registry.SCHEMAS[schema.name].partition(":")[0])
    assert module.__doc__ is not None
    for part in schema.answer_field.type:
        assert f"{part.name}: " in module.__doc__
