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
GIVEN = {"bought": "2026-03-02", "items": [{"price": "1.50", "colour": "red"}]}


@pytest.fixture
def ticket(tmp_path: Path) -> Schema:
    (tmp_path / "ticket.py").write_text(SOURCE)
    found = load_schema("ticket.py:Ticket", base_folder=tmp_path)
    assert found is not None
    return found


def test_without_a_schema_there_is_none() -> None:
    assert load_schema(None, base_folder=Path()) is None


def test_a_users_model_gives_typed_columns_and_exact_values(ticket: Schema) -> None:
    price = pa.struct({"price": pa.decimal128(8, 2), "colour": pa.string()})
    assert ticket.answer_field.type == pa.struct({"bought": pa.date32(), "items": pa.list_(price)})
    assert ticket.to_typed_answer(GIVEN) == {
        "bought": date(2026, 3, 2),
        "items": [{"price": Decimal("1.50"), "colour": "red"}],
    }


def test_a_users_model_is_closed_for_the_grammar_without_being_asked(ticket: Schema) -> None:
    assert ticket.json_schema["additionalProperties"] is False
    assert ticket.json_schema["$defs"]["Item"]["additionalProperties"] is False


def test_a_schema_works_in_a_process_that_does_not_have_its_file(ticket: Schema, tmp_path: Path) -> None:
    (tmp_path / "ticket.py").unlink()
    (tmp_path / "schema.pickle").write_bytes(pickle.dumps(ticket))
    code = (
        "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).check({'bought': '2026-03-02', 'items': []}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "schema.pickle"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "{'bought': datetime.date(2026, 3, 2), 'items': []}\n"


def test_what_does_not_fit_is_listed_with_its_places(ticket: Schema) -> None:
    with pytest.raises(AnswerError) as caught:
        ticket.to_typed_answer({"bought": "2026-02-30", "items": [{"price": "1.505", "colour": "green"}]})
    assert caught.value.kind == "invalid_answer"
    for place in ("bought: ", "items.0.price: ", "items.0.colour: "):
        assert place in caught.value.message


def test_a_json_schema_is_checked_as_it_says(tmp_path: Path) -> None:
    plain = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}, "d": {"format": "date", "type": "string"}},
    }
    (tmp_path / "plain.json").write_text(json.dumps(plain | {"required": ["n"], "description": "Count them."}))
    found = load_schema("plain.json", base_folder=tmp_path)
    assert found is not None
    assert found.default_prompt == "Count them."
    assert found.to_typed_answer({"n": 3, "d": "2026-03-02"}) == {"n": 3, "d": date(2026, 3, 2)}
    assert found.to_typed_answer({"n": 3}) == {"n": 3, "d": None}
    for wrong in ({"n": 10}, {"n": "3"}, {}, {"n": 1, "more": 2}, {"n": 1, "d": "2026-02-30"}, [1]):
        with pytest.raises(AnswerError):
            found.to_typed_answer(wrong)


ALIASED = """
from pydantic import BaseModel, Field
class A(BaseModel):
    total: int | None = Field(None, validation_alias="Total Amount")
"""


@pytest.mark.parametrize(
    ("name", "content", "spec", "message"),
    [
        ("a.py", "x = 1", "a.py", "does not say which model: write a.py:Model"),
        ("a.py", SOURCE, "a.py:Tickets", "no pydantic model 'Tickets'; it has: Item, Ticket"),
        ("a.py", "1/0", "a.py:Ticket", "cannot be run: ZeroDivisionError"),
        ("a.py", "import not_there", "a.py:Ticket", "cannot be run: ModuleNotFoundError"),
        ("a.json", "{", "a.json", "is not JSON"),
        ("a.json", "[]", "a.json", "must be an object"),
        ("a.json", '{"$ref": "#/$defs/Missing"}', "a.json", "leads nowhere"),
        ("a.json", '{"type": "object", "properties": 3}', "a.json", "not well formed: $.properties"),
        ("a.py", ALIASED, "a.py:A", "reads Total Amount and writes it under another name; give it `alias` alone"),
        ("b.py", "", "a.py:Ticket", "cannot be read"),
        ("b.py", "", "boxs", "Did you mean 'boxes'?"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_what_to_do(
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


def test_fields_that_may_be_null_or_anything_or_themselves_are_described(tmp_path: Path) -> None:
    tree = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}}]}
    fields = {"a": {"type": ["string", "null"]}, "b": {"title": "B", "description": "all of it"}}
    fields |= {"c": {"$ref": "#/$defs/tree"}, "d": {"type": "array", "items": {}}}
    (tmp_path / "a.json").write_text(json.dumps({"type": "object", "properties": fields, "$defs": {"tree": tree}}))
    found = load_schema("a.json", base_folder=tmp_path)
    assert found is not None
    assert describe_fields(found).splitlines()[1:] == [
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
    found = load_schema("a.py:Node", base_folder=tmp_path)
    assert found is not None
    assert describe_fields(found).splitlines()[1:] == ["kids: list of object"]
