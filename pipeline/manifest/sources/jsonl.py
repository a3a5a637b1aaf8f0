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
from pipeline.json_values import encodable
from pipeline.manifest.sources import Span

SAMPLE_BYTES = 2**20
SCALARS = {pa.bool_(): (bool,), pa.int64(): (int,), pa.float64(): (int, float), pa.string(): (str,)}
KINDS = (*SCALARS, *map(pa.list_, SCALARS))
EXACT = {pa.int64(): 2**63, pa.float64(): 2**53}  # whole numbers from there on are not


class Jsonl:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def settled(self) -> pa.Schema:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            rows = self.rows(b"".join(file.readlines(SAMPLE_BYTES)), 0)
        if not rows:
            raise self.wrong(0, 1, "the file holds no rows")
        names = dict.fromkeys(name for _, row in rows for name in row)
        return pa.schema([(name, kind_of([row.get(name) for _, row in rows])) for name in names])

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
            rows = self.rows(file.read(span[1] - span[0]), span[0])
        schema = self.schema()
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        return pa.table([self.column(rows, field, span[0]) for field in wanted], schema=wanted)

    def rows(self, text: bytes, start: int) -> list[tuple[int, dict[str, Any]]]:
        """Each with the number of its line, from the place where the text starts in the file."""
        found, halves = [], b"\\ud" in text.lower()  # of characters, which no table holds
        for number, line in enumerate(map(bytes.strip, text.split(b"\n")), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                what = f"is not UTF-8 ({error.reason} at byte {error.start + 1}): {shown(line)}"
                raise self.wrong(start, number, what) from error
            except (ValueError, RecursionError) as error:
                raise self.wrong(start, number, f"is not JSON ({error}): {shown(line)}") from error
            if not isinstance(row, dict):
                raise self.wrong(start, number, f"is JSON but not an object: {shown(line)}")
            found.append((number, encodable(row)[0] if halves else row))
        return found

    def column(self, rows: Sequence[tuple[int, dict[str, Any]]], field: pa.Field, start: int) -> pa.Array:
        if field.type == pa.string():
            cells = [row.get(field.name) for _, row in rows]
            return pa.array([cell if isinstance(cell, str | None) else said(cell) for cell in cells], field.type)
        for number, row in rows:
            if not fits(value := row.get(field.name), field.type):
                what = f"column {field.name} holds {said(value)[:80]}, and {field.type} before"
                raise self.wrong(start, number, f"{what}; give it one type in all rows")
        return pa.array([row.get(field.name) for _, row in rows], field.type)

    def wrong(self, start: int, number: int, what: str) -> JobError:
        return JobError(f"{self.url}:{self.lines_before(start) + number}: {what}")

    def lines_before(self, place: int) -> int:
        count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            while place > 0 and (text := file.read(min(place, SAMPLE_BYTES))):
                count, place = count + text.count(b"\n"), place - len(text)
        return count


def kind_of(values: Sequence[Any]) -> pa.DataType:
    """
    >>> [str(kind_of(values)) for values in ([1, None], [1, 2.5], [1, "a"], [[], ["a"]], [None], [{"a": 1}], [2**64])]
    ['int64', 'double', 'string', 'list<item: string>', 'string', 'string', 'string']
    """
    some = [value for value in values if value is not None and value != []]
    return next((kind for kind in KINDS if some and all(fits(value, kind) for value in some)), pa.string())


def fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(fits(each, kind.value_type) for each in value)
    exact = not isinstance(value, int) or abs(value) < EXACT.get(kind, 2)
    return type(value) in SCALARS[kind] and exact


def said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def shown(line: bytes) -> str:
    return line[:80].decode(errors="replace")
