"""The keys of an entry of `prompt.examples`: a question and its answer that a model sees before each row."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator

from pipeline.job.key_types import JobSection, NameList, define_key


def encode_answer(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


ExampleAnswer = Annotated[
    str, BeforeValidator(encode_answer, json_schema_input_type=str | dict[str, Any] | tuple[Any, ...])
]


class ExampleSection(JobSection):
    media: NameList = define_key("what it shows: URLs or paths of pictures, videos or documents", ())
    user: str | None = define_key("its question, as it is; default: that of the rows, if it names no column", None)
    answer: ExampleAnswer = define_key(
        "its answer, as the model is to write it: text, or keys and values, which become JSON", min_length=1
    )
