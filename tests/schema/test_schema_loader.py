"""How the schema that a job names is loaded and described."""

import json
import pickle
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import AnswerError, JobError
from pipeline.schema.schema import Schema
from pipeline.schema.schema_loader import FALLBACK_PROMPT, build_default_prompt, describe_fields, load_schema
from pipeline.schema.validate import validate_answer
from tests.awkward_schemas import nested_definitions

SOURCE = '''
from datetime import date
from decimal import Decimal
from enum import Enum
from pydantic import BaseModel, Field

class Colour(Enum):
    red = "red"
    blue = "blue"

class Item(BaseModel):
    price: Decimal = Field(decimal_places=2, max_digits=8, description="with tax")
    colour: Colour | None = None

class Ticket(BaseModel):
    """A ticket."""
    bought: date
    items: list[Item]

    def violations(self):
        if not self.items:
            yield "nothing was bought"
'''
ANSWER = {"bought": "2026-03-02", "items": [{"price": "1.50", "colour": "red"}]}


@pytest.fixture
def ticket(tmp_path: Path) -> Schema:
    (tmp_path / "ticket.py").write_text(SOURCE)
    schema = load_schema("ticket.py:Ticket", base_folder=tmp_path)
    assert schema is not None
    return schema


def test_a_job_without_a_schema() -> None:
    assert load_schema(None, base_folder=Path()) is None


def test_a_users_model_gives_typed_columns_and_exact_values(ticket: Schema) -> None:
    price = pa.struct({"price": pa.decimal128(8, 2), "colour": pa.string()})
    assert ticket.answer_field.type == pa.struct({"bought": pa.date32(), "items": pa.list_(price)})
    assert validate_answer(ANSWER, ticket)[0] == {
        "bought": date(2026, 3, 2),
        "items": [{"price": Decimal("1.50"), "colour": "red"}],
    }


def test_a_users_model_allows_no_extra_keys(ticket: Schema) -> None:
    assert ticket.json_schema["additionalProperties"] is False
    assert ticket.json_schema["$defs"]["Item"]["additionalProperties"] is False


def test_a_schema_works_in_a_process_that_does_not_have_its_file(ticket: Schema, tmp_path: Path) -> None:
    (tmp_path / "ticket.py").unlink()
    (tmp_path / "schema.pickle").write_bytes(pickle.dumps(ticket))
    code = (
        "import pickle, sys; from pipeline.schema.validate import validate_answer; "
        "schema = pickle.load(open(sys.argv[1], 'rb')); "
        "print(validate_answer({'bought': '2026-03-02', 'items': []}, schema)[0])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "schema.pickle"], capture_output=True, text=True, check=True
    )
    assert completed.stdout == "{'bought': datetime.date(2026, 3, 2), 'items': []}\n"


def test_every_error_is_listed_with_its_path(ticket: Schema) -> None:
    with pytest.raises(AnswerError) as caught:
        validate_answer({"bought": "2026-02-30", "items": [{"price": "1.505", "colour": "green"}]}, ticket)
    assert caught.value.kind == "invalid_answer"
    for place in ("bought: ", "items.0.price: ", "items.0.colour: "):
        assert place in caught.value.message


def test_answers_are_checked_against_a_json_schema(tmp_path: Path) -> None:
    schema_dict = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}, "d": {"format": "date", "type": "string"}},
    }
    (tmp_path / "plain.json").write_text(json.dumps(schema_dict | {"required": ["n"], "description": "Count them."}))
    schema = load_schema("plain.json", base_folder=tmp_path)
    assert schema is not None
    assert schema.default_prompt == "Count them."
    assert validate_answer({"n": 3, "d": "2026-03-02"}, schema)[0] == {"n": 3, "d": date(2026, 3, 2)}
    assert validate_answer({"n": 3}, schema)[0] == {"n": 3, "d": None}
    for wrong in ({"n": 10}, {"n": "3"}, {}, {"n": 1, "more": 2}, {"n": 1, "d": "2026-02-30"}, [1]):
        with pytest.raises(AnswerError):
            validate_answer(wrong, schema)


ALIASED = """
from pydantic import BaseModel, Field
class A(BaseModel):
    total: int | None = Field(None, validation_alias="Total Amount")
"""


@pytest.mark.parametrize(
    ("name", "content", "spec", "message"),
    [
        ("a.py", "x = 1", "a.py", "does not name a model: write a.py:Model"),
        ("a.py", SOURCE, "a.py:Tickets", "no pydantic model 'Tickets'; it has: Item, Ticket"),
        ("a.py", "1/0", "a.py:Ticket", "fails to run: ZeroDivisionError"),
        ("a.py", "import not_there", "a.py:Ticket", "fails to run: ModuleNotFoundError"),
        ("a.json", "{", "a.json", "is not JSON"),
        ("a.json", "[]", "a.json", "must be an object"),
        ("a.json", '{"$ref": "#/$defs/Missing"}', "a.json", "leads nowhere"),
        ("a.json", '{"type": "object", "properties": 3}', "a.json", "not well formed: $.properties"),
        ("a.py", ALIASED, "a.py:A", "reads Total Amount but writes it under another name; use only `alias`"),
        ("b.py", "", "a.py:Ticket", "cannot be read"),
        ("b.py", "", "boxs", "Did you mean 'boxes'?"),
    ],
)
def test_a_broken_schema_is_refused_with_advice(
    tmp_path: Path, name: str, content: str, spec: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(JobError) as caught:
        load_schema(spec, base_folder=tmp_path)
    assert message in str(caught.value)


def test_a_model_that_json_schema_cannot_express_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from collections.abc import Callable\nfrom pydantic import BaseModel\n"
        "class A(BaseModel):\n    f: Callable[[], int]\n"
    )
    with pytest.raises(JobError, match="cannot be written as JSON Schema"):
        load_schema("a.py:A", base_folder=tmp_path)


def test_the_prompt_names_every_field_with_its_description(ticket: Schema) -> None:
    assert describe_fields(ticket).splitlines()[1:] == [
        "bought: date",
        "items: list of object",
        "  price: amount as text, with tax",
        '  colour: one of "red", "blue" or null',
    ]
    assert build_default_prompt(ticket).startswith(FALLBACK_PROMPT)


def test_nullable_free_and_recursive_fields_are_described(tmp_path: Path) -> None:
    tree = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}}]}
    fields = {"a": {"type": ["string", "null"]}, "b": {"title": "B", "description": "all of it"}}
    fields |= {"c": {"$ref": "#/$defs/tree"}, "d": {"type": "array", "items": {}}}
    (tmp_path / "a.json").write_text(json.dumps({"type": "object", "properties": fields, "$defs": {"tree": tree}}))
    schema = load_schema("a.json", base_folder=tmp_path)
    assert schema is not None
    assert describe_fields(schema).splitlines()[1:] == [
        "a: text or null",
        "b: any, all of it",
        "c: text or list of any",
        "d: list of any",
    ]


def test_a_recursive_schema_is_described_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from __future__ import annotations\nfrom pydantic import BaseModel\n"
        "class Node(BaseModel):\n    kids: list[Node]\n"
    )
    schema = load_schema("a.py:Node", base_folder=tmp_path)
    assert schema is not None
    assert describe_fields(schema).splitlines()[1:] == ["kids: list of object"]


def test_a_schema_whose_definitions_multiply_is_described_to_some_depth(tmp_path: Path) -> None:
    (tmp_path / "nested.json").write_text(json.dumps(nested_definitions(levels=30, fields=4)))
    schema = load_schema("nested.json", base_folder=tmp_path)
    assert schema is not None
    lines = describe_fields(schema).splitlines()
    assert lines[1:3] == ["part_0: object", "  part_0: object"]
    assert len(lines) < 3000
