"""How answers are checked against their schema."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import AnswerError
from pipeline.schema.columns import to_column_value
from pipeline.schema.schema import Schema
from pipeline.schema.schema_loader import load_schema
from pipeline.schema.validate import MAX_LISTED_ERRORS, validate_answer


def load_model_schema(tmp_path: Path, body: str) -> Schema:
    head = "from pydantic import BaseModel, Field, field_validator\nclass A(BaseModel):\n    n: int = 0\n"
    (tmp_path / "a.py").write_text(head + body)
    schema = load_schema("a.py:A", base_folder=tmp_path)
    assert schema is not None
    return schema


def test_violations_are_listed_beside_the_answer(tmp_path: Path) -> None:
    schema = load_model_schema(tmp_path, "    def violations(self):\n        yield f'{self.n} is odd'\n")
    assert validate_answer({"n": 3}, schema) == ({"n": 3}, ("3 is odd",))


def test_a_validator_that_raises_makes_the_answer_invalid(tmp_path: Path) -> None:
    rule = (
        "    @field_validator('n')\n    def even(cls, n):\n        if n % 2:\n            raise ValueError('is odd')\n"
    )
    with pytest.raises(AnswerError, match="n: Value error, is odd") as caught:
        validate_answer({"n": 3}, load_model_schema(tmp_path, rule))
    assert caught.value.kind == "invalid_answer"


@pytest.mark.parametrize("method", ["violations(self)", "model_post_init(self, context)"])
def test_a_bug_in_a_users_schema_fails_the_answer_only(tmp_path: Path, method: str) -> None:
    with pytest.raises(AnswerError, match="A raised ZeroDivisionError") as caught:
        validate_answer({"n": 0}, load_model_schema(tmp_path, f"    def {method}:\n        return [1 / self.n]\n"))
    assert caught.value.kind == "schema_code"


def test_a_long_list_of_errors_is_shortened(tmp_path: Path) -> None:
    schema = load_model_schema(tmp_path, "    many: list[int]\n")
    with pytest.raises(AnswerError) as caught:
        validate_answer({"many": ["x"] * (MAX_LISTED_ERRORS + 5)}, schema)
    assert caught.value.message.endswith("; and 5 more")


def test_a_field_may_be_called_violations(tmp_path: Path) -> None:
    schema = load_model_schema(tmp_path, "    violations: list[str] = Field(default=['x'])\n")
    assert validate_answer({"n": 1}, schema) == ({"n": 1, "violations": ["x"]}, ())


@pytest.mark.parametrize(
    ("field", "value"),
    [("int", 10**20), ("int", -(2**63) - 1), ("Decimal", "1" + "0" * 20), ("float", float("inf"))],
)
def test_a_number_that_no_column_holds_is_an_invalid_answer(tmp_path: Path, field: str, value: object) -> None:
    head = "from decimal import Decimal\nfrom pydantic import BaseModel\n"
    (tmp_path / "a.py").write_text(f"{head}class A(BaseModel):\n    n: {field}\n")
    schema = load_schema("a.py:A", base_folder=tmp_path)
    assert schema is not None
    with pytest.raises(AnswerError) as caught:
        validate_answer({"n": value}, schema)
    assert caught.value.kind == "invalid_answer"


def test_decimals_keep_every_digit_of_their_column(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"type":"object","properties":{"n":{"type":"string","format":"decimal"}}}')
    schema = load_schema("a.json", base_folder=tmp_path)
    assert schema is not None
    assert validate_answer({"n": "123456789012345678.123456"}, schema)[0] == {"n": Decimal("123456789012345678.123456")}
    wide = to_column_value("12345678901234567890123456789012.5", pa.field("n", pa.decimal128(38, 4)))
    assert wide == Decimal("12345678901234567890123456789012.5000")


def test_a_strict_model_accepts_dates_and_enums_as_json_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from datetime import date\nfrom enum import Enum\nfrom pydantic import BaseModel, ConfigDict\n"
        "class Colour(Enum):\n    red = 'red'\n"
        "class A(BaseModel):\n    model_config = ConfigDict(strict=True)\n"
        "    day: date\n    colour: Colour\n    place: tuple[int, int]\n    n: int\n"
    )
    schema = load_schema("a.py:A", base_folder=tmp_path)
    assert schema is not None
    answer = {"day": "2026-03-02", "colour": "red", "place": [1, 2], "n": 1}
    assert validate_answer(answer, schema)[0] == answer | {"day": date(2026, 3, 2)}
    with pytest.raises(AnswerError, match="n: Input should be a valid integer"):
        validate_answer(answer | {"n": "1"}, schema)
