"""JSONL manifests, cut at byte offsets. The first mebibyte decides the type of each column for the whole file.

A column of numbers, booleans, or lists of one of them gets that type. Every other column becomes text: strings as
they are, and objects, chats, mixed values and numbers too long to be exact as JSON text, which loses nothing and fits
whatever comes later in the file. Chats, media and options are also accepted as JSON text.
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
from pipeline.manifest.sources.base import Source, Span

SAMPLE_BYTES = 2**20
COMPRESSED_ENDING = ".gz"
PYTHON_TYPES = {pa.bool_(): (bool,), pa.int64(): (int,), pa.float64(): (int, float), pa.string(): (str,)}
COLUMN_TYPES = (*PYTHON_TYPES, *map(pa.list_, PYTHON_TYPES))
EXACT_LIMITS = {pa.int64(): 2**63, pa.float64(): 2**53}  # smaller integers are exact


class JsonlSource(Source):
    file_endings = (".jsonl", ".ndjson", ".jsonl.gz")
    infers_types = True

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
        start = end = row_count = 0
        with fsspec.open(self.url, "rb", compression="infer") as file:
            for line in file:
                end += len(line)
                row_count += bool(line.strip())
                if row_count == rows_per_span:
                    yield start, end
                    start, row_count = end, 0
        if row_count:
            yield start, end

    def estimate_rows(self) -> int:
        """Compressed files have more."""
        with fsspec.open(self.url, "rb", compression="infer") as file:
            lines = file.readlines(SAMPLE_BYTES)
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return int(filesystem.size(path) * len(lines) // (sum(map(len, lines)) or 1))

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        rows = self.parse_rows(self.read_bytes(span), span[0])
        schema = self.read_schema()
        names = schema.names if columns is None else columns
        selected = pa.schema([use_text_for_null(schema.field(name)) for name in names])
        return pa.table([self.build_column(rows, field, span[0]) for field in selected], schema=selected)

    def read_bytes(self, span: Span) -> bytes:
        if self.url.endswith(COMPRESSED_ENDING):
            self.decompressed_file.seek(span[0])
            return bytes(self.decompressed_file.read(span[1] - span[0]))
        with fsspec.open(self.url, "rb") as file:
            file.seek(span[0])
            return bytes(file.read(span[1] - span[0]))

    @cached_property
    def decompressed_file(self) -> Any:
        """It stays open: a span costs what lies between the last one and its end, and not all that comes before."""
        return fsspec.open(self.url, "rb", compression="infer").open()

    def parse_rows(self, data: bytes, offset: int) -> list[tuple[int, dict[str, Any]]]:
        """(line number, row) of each row; line 1 starts at `offset` in the file."""
        rows, may_have_surrogates = [], b"\\ud" in data.lower()
        for number, line in enumerate(map(bytes.strip, data.split(b"\n")), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 ({error.reason} at byte {error.start + 1}): {preview_line(line)}"
                raise self.build_error(offset, number, problem) from error
            except (ValueError, RecursionError) as error:
                raise self.build_error(offset, number, f"is not JSON ({error}): {preview_line(line)}") from error
            if not isinstance(row, dict):
                raise self.build_error(offset, number, f"is JSON but not an object: {preview_line(line)}")
            rows.append((number, replace_lone_surrogates(row)[0] if may_have_surrogates else row))
        return rows

    def build_column(self, rows: Sequence[tuple[int, dict[str, Any]]], field: pa.Field, offset: int) -> pa.Array:
        if field.type == pa.string():
            cells = [row.get(field.name) for _, row in rows]
            return pa.array([cell if isinstance(cell, str | None) else format_json(cell) for cell in cells], field.type)
        for number, row in rows:
            if not has_type(value := row.get(field.name), field.type):
                problem = f"column {field.name} holds {format_json(value)[:80]}, and {field.type} before"
                raise self.build_error(offset, number, f"{problem}; give it one type in all rows")
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
    >>> [str(infer_type(values)) for values in ([1, None], [1, 2.5], [1, "a"], [[], ["a"]], [{"a": 1}], [2**64], [])]
    ['int64', 'double', 'string', 'list<item: string>', 'string', 'string', 'null']
    """
    typed_values = [value for value in values if value is not None and value != []]
    fitting_types = (kind for kind in COLUMN_TYPES if all(has_type(value, kind) for value in typed_values))
    return next(fitting_types, pa.string()) if typed_values else pa.null()


def use_text_for_null(field: pa.Field) -> pa.Field:
    return field.with_type(pa.string()) if pa.types.is_null(field.type) else field


def has_type(value: Any, data_type: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_list(data_type):
        return isinstance(value, list) and all(has_type(item, data_type.value_type) for item in value)
    is_exact = not isinstance(value, int) or abs(value) < EXACT_LIMITS.get(data_type, 2)
    return type(value) in PYTHON_TYPES[data_type] and is_exact


def format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def preview_line(line: bytes) -> str:
    return line[:80].decode(errors="replace")
