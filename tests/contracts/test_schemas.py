"""What holds for every schema that ships."""

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
def shipped(request: pytest.FixtureRequest) -> Schema:
    found = load_schema(request.param, base_folder=Path())
    assert found is not None
    return found


def test_it_travels_by_name(shipped: Schema) -> None:
    assert shipped.source == ""
    assert pickle.loads(pickle.dumps(shipped)) == shipped


def test_the_grammar_holds_all_of_it(shipped: Schema) -> None:
    assert find_problems(shipped) == []


def test_its_example_is_a_good_answer(shipped: Schema) -> None:
    value, violations = validate_answer(shipped.example, shipped)
    assert violations == ()
    assert to_arrow_array([value, None], shipped.answer_field).null_count == 1


def test_its_prompt_asks_names_every_field_and_shows_the_example(shipped: Schema) -> None:
    text = build_default_prompt(shipped)
    assert text.startswith(str(shipped.default_prompt))
    for name in re.findall(r'"([a-z_0-9]+)":\{', shipped.text):
        assert (
            name in ("properties", "items") or name.startswith("$") or re.search(rf"^ *{name}: .+", text, re.MULTILINE)
        )
    assert json.dumps(shipped.example, ensure_ascii=False, separators=(",", ":")) in text


def test_every_field_is_typed(shipped: Schema) -> None:
    def fields(kind: pa.DataType) -> list[pa.Field]:
        inner = list(kind) if pa.types.is_struct(kind) else [kind.value_field] if pa.types.is_list(kind) else []
        return inner + [deeper for part in inner for deeper in fields(part.type)]

    assert [part.name for part in fields(shipped.answer_field.type) if part.metadata] == []


def test_its_file_says_its_columns(shipped: Schema) -> None:
    module = import_module(registry.SCHEMAS[shipped.name].partition(":")[0])
    assert module.__doc__ is not None
    for part in shipped.answer_field.type:
        assert f"{part.name}: " in module.__doc__
