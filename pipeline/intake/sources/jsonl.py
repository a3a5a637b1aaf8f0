"""A JSONL file -> spans of byte offsets -> rows. Types are settled over the first mebibyte and hold for the file.

Text stays text, also where it looks like a date: a name or a prompt must come out as it stands in the file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.json

from pipeline.errors import JobError
from pipeline.intake.sources import Span

SAMPLE_BYTES = 2**20


class Jsonl:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def settled(self) -> pa.Schema:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            lines = file.readlines(SAMPLE_BYTES)
        return pa.schema([(field.name, as_written(field.type)) for field in self.parse(b"".join(lines), None).schema])

    def schema(self) -> pa.Schema:
        return self.settled

    def spans(self, rows: int) -> Iterator[Span]:
        start = at = count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            for line in file:
                at += len(line)
                count += bool(line.strip())
                if count == rows:
                    yield start, at
                    start, count = at, 0
        if count:
            yield start, at

    def read(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            file.seek(span[0])
            text = file.read(span[1] - span[0])
        schema = self.schema()  # of what is wanted only: what nobody asks for may change its type
        table = self.parse(text, pa.schema([schema.field(name) for name in columns]) if columns else schema, span[0])
        return table if columns is None else table.select(columns)

    def parse(self, text: bytes, schema: pa.Schema | None, start: int = 0) -> pa.Table:
        try:
            table = parsed(text, schema)
            table.validate(full=True)  # or text that is not UTF-8 would be found where nobody expects it
            return table
        except pa.ArrowInvalid as error:
            at, what = bad_line(text, schema, str(error))
            raise JobError(f"{self.url}:{self.lines_before(start) + at}: {what}") from error

    def lines_before(self, place: int) -> int:
        count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            while place > 0 and (text := file.read(min(place, SAMPLE_BYTES))):
                count, place = count + text.count(b"\n"), place - len(text)
        return count


def parsed(text: bytes, schema: pa.Schema | None) -> pa.Table:
    unexpected = "ignore" if schema else "infer"
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    reading = pyarrow.json.ReadOptions(block_size=max(len(text), 1))
    return pyarrow.json.read_json(io.BytesIO(text), parse_options=parsing, read_options=reading)


def as_written(kind: pa.DataType) -> pa.DataType:
    """Arrow's guess at a column's type, less what JSON does not know: dates. What is empty so far may be text."""
    if isinstance(kind, pa.ListType):
        return pa.list_(as_written(kind.value_type))
    if isinstance(kind, pa.StructType):
        return pa.struct([(field.name, as_written(field.type)) for field in kind])
    return pa.string() if pa.types.is_timestamp(kind) or pa.types.is_null(kind) else kind


def bad_line(text: bytes, schema: pa.Schema | None, error: str) -> tuple[int, str]:
    """The first line that is wrong, and what is: what a person wants to know of a broken file."""
    lines = [(number, line) for number, line in enumerate(map(bytes.strip, text.split(b"\n")), 1) if line]
    for number, line in lines:
        shown = line[:80].decode(errors="replace")
        try:
            if isinstance(json.loads(line), dict):
                continue
        except UnicodeDecodeError as reason:
            return number, f"is not UTF-8 ({reason.reason} at byte {reason.start + 1}): {shown}"
        except ValueError as reason:
            return number, f"is not JSON ({reason}): {shown}"
        return number, f"is JSON but not an object: {shown}"
    at = int(match[1]) if (match := re.search(r" in row (\d+)$", error)) and lines else 0
    if schema is None:
        if not at:
            return (lines[0][0], error) if lines else (1, "the file holds no rows")
        schema = parsed(b"\n".join(line for _, line in lines[:at]), None).schema
    for number, line in lines[at:]:
        for name, value in json.loads(line).items():
            if name in schema.names and not fits({name: value}, schema):
                said = json.dumps(value, ensure_ascii=False)[:80]
                kind = as_written(schema.field(name).type)
                return number, f"column {name} holds {said}, and {kind} before; give it one type in all rows"
    return lines[at][0], error


def fits(row: dict[str, Any], schema: pa.Schema) -> bool:
    try:
        parsed(json.dumps(row).encode(), schema)
    except pa.ArrowInvalid:
        return False
    return True
