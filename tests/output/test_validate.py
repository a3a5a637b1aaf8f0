from pathlib import Path

import pytest

from pipeline.errors import AnswerError
from pipeline.output.schema import Schema, load
from pipeline.output.validate import MOST, validate


def model(tmp_path: Path, body: str) -> Schema:
    head = "from pydantic import BaseModel, Field, field_validator\nclass A(BaseModel):\n    n: int = 0\n"
    (tmp_path / "a.py").write_text(head + body)
    found = load("a.py:A", base=tmp_path)
    assert found is not None
    return found


def test_what_a_schema_doubts_is_listed_beside_the_answer(tmp_path: Path) -> None:
    schema = model(tmp_path, "    def violations(self):\n        yield f'{self.n} is odd'\n")
    assert validate({"n": 3}, schema) == ({"n": 3}, ("3 is odd",))


def test_a_validator_that_raises_makes_the_answer_invalid(tmp_path: Path) -> None:
    rule = (
        "    @field_validator('n')\n    def even(cls, n):\n        if n % 2:\n            raise ValueError('is odd')\n"
    )
    with pytest.raises(AnswerError, match="n: Value error, is odd") as caught:
        validate({"n": 3}, model(tmp_path, rule))
    assert caught.value.kind == "invalid_answer"


@pytest.mark.parametrize("method", ["violations(self)", "model_post_init(self, context)"])
def test_a_bug_in_a_users_schema_costs_the_row_and_not_the_run(tmp_path: Path, method: str) -> None:
    with pytest.raises(AnswerError, match="A raised ZeroDivisionError") as caught:
        validate({"n": 0}, model(tmp_path, f"    def {method}:\n        return [1 / self.n]\n"))
    assert caught.value.kind == "schema_code"


def test_a_long_list_of_complaints_is_cut(tmp_path: Path) -> None:
    schema = model(tmp_path, "    many: list[int]\n")
    with pytest.raises(AnswerError) as caught:
        validate({"many": ["x"] * (MOST + 5)}, schema)
    assert caught.value.message.endswith("; and 5 more")


def test_a_field_may_be_called_violations(tmp_path: Path) -> None:
    schema = model(tmp_path, "    violations: list[str] = Field(default=['x'])\n")
    assert validate({"n": 1}, schema) == ({"n": 1, "violations": ["x"]}, ())
