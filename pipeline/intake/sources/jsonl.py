"""A JSONL file -> spans of byte offsets -> rows. Types are settled over the first mebibyte and hold for the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property

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
        return self.parse(b"".join(lines), None).schema

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
        table = self.parse(text, self.schema(), span[0])
        return table if columns is None else table.select(columns)

    def parse(self, text: bytes, schema: pa.Schema | None, start: int = 0) -> pa.Table:
        unexpected = "ignore" if schema else "infer"
        parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
        reading = pyarrow.json.ReadOptions(block_size=max(len(text), 1))
        try:
            return pyarrow.json.read_json(io.BytesIO(text), parse_options=parsing, read_options=reading)
        except pa.ArrowInvalid as error:
            at, what = bad_line(text) or (0, str(error))
            raise JobError(f"{self.url}:{self.lines_before(start) + at}: {what}") from error

    def lines_before(self, place: int) -> int:
        count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            while place > 0 and (text := file.read(min(place, SAMPLE_BYTES))):
                count, place = count + text.count(b"\n"), place - len(text)
        return count


def bad_line(text: bytes) -> tuple[int, str] | None:
    """The first line that is no JSON object, and what it is: what a person wants to know of a broken file."""
    for number, line in enumerate(map(bytes.strip, text.split(b"\n")), 1):
        shown = line[:80].decode(errors="replace")
        try:
            if not line or isinstance(json.loads(line), dict):
                continue
        except ValueError as error:
            return number, f"is not JSON ({error}): {shown}"
        return number, f"is JSON but not an object: {shown}"
    return None
