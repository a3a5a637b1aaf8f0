"""Truths in a table: Parquet, JSONL or CSV with an id, and a column `truth` or one column for each field.

A column `truth` holds a whole answer, as JSON text or a struct; rows where it is empty are not labelled. Columns of
fields are named after them, with dots for fields inside fields (`seller.name`). A table without such columns may have
those of an export (`answer`, `answer.seller.name`, `text`), so that an export which people corrected is a truth.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import JobError, OutputError
from pipeline.json_values import parse_json_text
from pipeline.manifest.files import ManifestFile, detect_source_kind
from pipeline.manifest.row_keys import format_row_id
from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader
from pipeline.truth.compared_fields import BOOLEAN_CHOICES, ComparedField

TRUTH_COLUMN = "truth"
EXPORTED_ANSWER, EXPORTED_TEXT = "answer", "text"
ROWS_PER_READ = 10_000


class TruthTableReader(TruthReader):
    description = "Parquet, JSONL or CSV"

    @classmethod
    def can_read(cls, file: TruthFile) -> bool:
        return detect_source_kind(file.url) is not None

    def read(self) -> Iterator[TrueAnswer]:
        source = ManifestFile(self.file.url, detect_source_kind(self.file.url) or "").open_source()
        try:
            names = source.read_schema().names
            if self.file.id_column not in names:
                raise OutputError(
                    f"--truth {self.file.url} has no column {self.file.id_column!r}; it has {', '.join(names)}. "
                    "Name the column of ids with --truth-id"
                )
            for span in source.list_spans(ROWS_PER_READ):
                for row in source.read_span(span).to_pylist(maps_as_pydicts="lossy"):
                    row_id = format_row_id(row.pop(self.file.id_column))
                    if row_id is not None and (answer := build_true_answer(row, self.file.root)) is not None:
                        yield TrueAnswer((row_id,), answer)
        except (OSError, JobError) as error:
            raise OutputError(f"--truth {self.file.url}: {error}") from error


def build_true_answer(row: Mapping[str, Any], root: ComparedField) -> Any:
    """The truth of a row of a table; None where the row is not labelled."""
    if TRUTH_COLUMN in row:
        return read_truth_value(row[TRUTH_COLUMN], root, TRUTH_COLUMN)
    cells = {name: value for name, value in row.items() if is_field(name.split("."), root)}
    if not cells:
        column = find_exported_column(row, root)
        if column:
            return read_truth_value(row[column], root, column)
        names = {strip_answer(name): name for name in row}
        cells = {field: row[name] for field, name in names.items() if is_field(field.split("."), root)}
    if all(value is None for value in cells.values()):
        return None
    answer: dict[str, Any] = {}
    for path, value in cells.items():
        *outer, name = path.split(".")
        inner = answer
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[name] = value
    return answer


def holds_truths(columns: Sequence[str], root: ComparedField) -> bool:
    has_fields = any(is_field(strip_answer(name).split("."), root) for name in columns)
    return TRUTH_COLUMN in columns or has_fields or find_exported_column(columns, root) is not None


def strip_answer(column: str) -> str:
    """
    >>> strip_answer("answer.total")
    'total'
    """
    return column.removeprefix(f"{EXPORTED_ANSWER}.")


def find_exported_column(columns: Collection[str], root: ComparedField) -> str | None:
    """The column of an export that holds whole answers."""
    if EXPORTED_ANSWER in columns:
        return EXPORTED_ANSWER
    return EXPORTED_TEXT if EXPORTED_TEXT in columns and root.kind != "object" else None


def is_field(steps: list[str], root: ComparedField) -> bool:
    member = next((part for part in root.members if part.name == steps[0]), None)
    return member is not None and (len(steps) == 1 or is_field(steps[1:], member))


def read_truth_value(value: Any, root: ComparedField, column: str) -> Any:
    """A whole answer, or the value of the field that has the column's name, or of the only field.

    Where all fields are booleans, as with answer.multi, a list names those that are true.
    """
    value = None if value == "" else value
    if value is None:
        return None
    if root.kind == "choice" and value not in root.choices:
        quoted = {json.dumps(choice): choice for choice in root.choices}
        return quoted.get(value, value) if isinstance(value, str) else value
    if root.kind != "object":
        return value
    parsed = json.loads(value) if value in ("{}", "[]") else parse_json_text(value)
    if isinstance(parsed, Mapping):
        return parsed
    names = [part.name for part in root.members]
    are_booleans = all(part.choices == BOOLEAN_CHOICES for part in root.members)
    if isinstance(parsed, list) and are_booleans and set(parsed) <= set(names):
        return {name: name in parsed for name in names}
    if column in names or len(names) == 1:
        return {column if column in names else names[0]: value}
    raise OutputError(
        f"the column {column} holds {value!r:.80}, which is no answer: give JSON with the fields "
        f"{', '.join(names)}, or name the column after the field that it holds"
    )
