"""A JSONL file -> spans of byte offsets -> rows. Types are settled over the first mebibyte and hold for the file.

A column of numbers, of yes and no, or of lists of one such kind has its type. All else is text: what is text as it is,
and chats, objects, numbers too long to be exact and columns that are now this and now that as JSON, of which nothing
is lost and which fits whatever comes later. Who reads a chat, media or a setting takes JSON text as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.json_values import replace_lone_surrogates
from pipeline.manifest.sources import Span

SAMPLE_BYTES = 2**20
PYTHON_TYPES = {pa.bool_(): (bool,), pa.int64(): (int,), pa.float64(): (int, float), pa.string(): (str,)}
COLUMN_TYPES = (*PYTHON_TYPES, *map(pa.list_, PYTHON_TYPES))
EXACT_LIMITS = {pa.int64(): 2**63, pa.float64(): 2**53}  # whole numbers from there on are not


class JsonlSource:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def inferred_schema(self) -> pa.Schema:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            rows = self.parse_rows(b"".join(file.readlines(SAMPLE_BYTES)), 0)
        if not rows:
            raise self.build_error(0, 1, "the file holds no rows")
        names = dict.fromkeys(name for _, row in rows for name in row)
        return pa.schema([(name, infer_type([row.get(name) for _, row in rows])) for name in names])

    def read_schema(self) -> pa.Schema:
        return self.inferred_schema

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        start = at = count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            for line in file:
                at += len(line)
                count += bool(line.strip())
                if count == rows_per_span:
                    yield start, at
                    start, count = at, 0
        if count:
            yield start, at

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            file.seek(span[0])
            rows = self.parse_rows(file.read(span[1] - span[0]), span[0])
        schema = self.read_schema()
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        return pa.table([self.build_column(rows, field, span[0]) for field in wanted], schema=wanted)

    def parse_rows(self, data: bytes, offset: int) -> list[tuple[int, dict[str, Any]]]:
        """Each with the number of its line, from the place where the text starts in the file."""
        found, halves = [], b"\\ud" in data.lower()  # of characters, which no table holds
        for number, line in enumerate(map(bytes.strip, data.split(b"\n")), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                what = f"is not UTF-8 ({error.reason} at byte {error.start + 1}): {preview_line(line)}"
                raise self.build_error(offset, number, what) from error
            except (ValueError, RecursionError) as error:
                raise self.build_error(offset, number, f"is not JSON ({error}): {preview_line(line)}") from error
            if not isinstance(row, dict):
                raise self.build_error(offset, number, f"is JSON but not an object: {preview_line(line)}")
            found.append((number, replace_lone_surrogates(row)[0] if halves else row))
        return found

    def build_column(self, rows: Sequence[tuple[int, dict[str, Any]]], field: pa.Field, offset: int) -> pa.Array:
        if field.type == pa.string():
            cells = [row.get(field.name) for _, row in rows]
            return pa.array([cell if isinstance(cell, str | None) else format_json(cell) for cell in cells], field.type)
        for number, row in rows:
            if not has_type(value := row.get(field.name), field.type):
                what = f"column {field.name} holds {format_json(value)[:80]}, and {field.type} before"
                raise self.build_error(offset, number, f"{what}; give it one type in all rows")
        return pa.array([row.get(field.name) for _, row in rows], field.type)

    def build_error(self, offset: int, line_number: int, problem: str) -> JobError:
        return JobError(f"{self.url}:{self.count_lines_before(offset) + line_number}: {problem}")

    def count_lines_before(self, offset: int) -> int:
        count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            while offset > 0 and (text := file.read(min(offset, SAMPLE_BYTES))):
                count, offset = count + text.count(b"\n"), offset - len(text)
        return count


def infer_type(values: Sequence[Any]) -> pa.DataType:
    """
    >>> [str(kind_of(values)) for values in ([1, None], [1, 2.5], [1, "a"], [[], ["a"]], [None], [{"a": 1}], [2**64])]
    ['int64', 'double', 'string', 'list<item: string>', 'string', 'string', 'string']
    """
    some = [value for value in values if value is not None and value != []]
    return next((kind for kind in COLUMN_TYPES if some and all(has_type(value, kind) for value in some)), pa.string())


def has_type(value: Any, data_type: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_list(data_type):
        return isinstance(value, list) and all(has_type(each, data_type.value_type) for each in value)
    exact = not isinstance(value, int) or abs(value) < EXACT_LIMITS.get(data_type, 2)
    return type(value) in PYTHON_TYPES[data_type] and exact


def format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def preview_line(line: bytes) -> str:
    return line[:80].decode(errors="replace")
