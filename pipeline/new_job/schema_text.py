"""Writes a schema file from fields such as `total: number` or `currency: EUR|USD`."""

from __future__ import annotations

import json
import keyword
import re
from typing import NamedTuple

from pipeline.errors import PipelineError

TYPES = {"text": "str", "number": "float", "whole": "int", "yes-no": "bool", "date": "date"}
FIELDS_HELP = (
    "comma-separated name:type; types are text, number, whole, yes-no, date, or words to choose from, as in EUR|USD; "
    "[] after a type makes a list"
)
DEFAULT_PROMPT = "Fill in what there is to see, and leave out the rest."
MODULE_TEXT = '''\
"""What an answer must look like. Edit the descriptions: the model reads them."""

{imports}


class {model}(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default_prompt: ClassVar[str] = {prompt}

{fields}
'''


class SchemaField(NamedTuple):
    name: str
    type_text: str  # as Python writes it


def parse_fields(text: str) -> list[SchemaField]:
    """
    >>> parse_fields("total: number, currency: EUR|USD, tags: text[]")
    [SchemaField(name='total', type_text='float'), SchemaField(name='currency', type_text='Literal["EUR", "USD"]'),\
 SchemaField(name='tags', type_text='list[str]')]
    """
    fields: list[SchemaField] = []
    for entry in filter(str.strip, text.split(",")):
        name, _, kind = (part.strip() for part in entry.partition(":"))
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
            raise PipelineError(f"--fields: {name!r} cannot name a field; write lower-case letters, digits and _")
        if name in (field.name for field in fields):
            raise PipelineError(f"--fields: {name} is given twice")
        fields.append(SchemaField(name, parse_type(name, kind or "text")))
    if not fields:
        raise PipelineError(f"--fields: names no field; give {FIELDS_HELP}")
    return fields


def parse_type(name: str, kind: str) -> str:
    if kind.endswith("[]"):
        return f"list[{parse_type(name, kind[:-2])}]"
    if "|" in kind:
        words = [word.strip() for word in kind.split("|")]
        return f"Literal[{', '.join(map(quote_text, filter(None, words)))}]"
    if kind not in TYPES:
        raise PipelineError(f"--fields: {name} has the type {kind!r}; give {FIELDS_HELP}")
    return TYPES[kind]


def build_schema_text(fields: list[SchemaField], model_name: str, prompt: str) -> str:
    types = " ".join(field.type_text for field in fields)
    typing_names = ["ClassVar", *(["Literal"] if "Literal" in types else [])]
    imports = ["from datetime import date"] if "date" in types else []
    imports += [
        f"from typing import {', '.join(typing_names)}",
        "",
        "from pydantic import BaseModel, ConfigDict, Field",
    ]
    lines = [format_field(field) for field in fields]
    return MODULE_TEXT.format(
        imports="\n".join(imports),
        model=model_name,
        prompt=quote_text(prompt or DEFAULT_PROMPT),
        fields="\n".join(lines),
    )


def format_field(field: SchemaField) -> str:
    """A field that may be missing in the picture is null. A list is empty instead."""
    description = quote_text(field.name.replace("_", " "))
    if field.type_text.startswith("list["):
        return f"    {field.name}: {field.type_text} = Field(description={description})"
    return f"    {field.name}: {field.type_text} | None = Field(None, description={description})"


def quote_text(text: str) -> str:
    """A Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
