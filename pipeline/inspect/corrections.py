"""Turns what people labelled or corrected into a table of truths: ids of rows, and answers in the schema's types.

The answered rows of an output tell which picture belongs to which row. `score`, `export --prefer-truth` and
`run --except` read the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.score import find_schema
from pipeline.inspect.score.scored_rows import read_answered_rows, read_failed_rows
from pipeline.output.local_files import write_named_file
from pipeline.truth.compared_fields import build_compared_fields
from pipeline.truth.truth_index import TruthIndex, open_truth
from pipeline.truth.truth_table import TRUTH_COLUMN
from pipeline.truth.typed_truth import type_truth


@dataclass(frozen=True, slots=True)
class CorrectionCount:
    rows: int  # that have a truth
    unused: int  # truths without a row


def write_corrections(
    file: str,
    output: str,
    target: Path,
    *,
    format_name: str | None,
    question: str | None = None,
    id_column: str = "id",
    schema_spec: str | None = None,
) -> CorrectionCount:
    reader = open_output_reader(output, question)
    schema = find_schema(reader, schema_spec)
    truth = open_truth(file, id_column, build_compared_fields(schema), [], format_name)
    found = find_truths(reader, truth)
    if not found:
        raise OutputError(f"{file}: none of its truths belongs to a row of {output}, by id or by the name of a file")
    sink = pa.BufferOutputStream()
    pq.write_table(build_truth_table(found, read_answer_field(reader)), sink, compression="zstd")
    write_named_file(target, bytes(sink.getvalue()))
    return CorrectionCount(len(found), truth.count_unused())


def find_truths(reader: OutputReader, truth: TruthIndex) -> dict[str, Any]:
    """By the ids of rows."""
    for rows in (read_answered_rows(reader, []), read_failed_rows(reader, None)):
        for row in rows:
            if row["id"] not in truth.used:
                truth.find(row)
    return dict(sorted(truth.used.items()))


def read_answer_field(reader: OutputReader) -> pa.Field:
    """The type of answers, as the parts have it; text where there is no schema."""
    part = next(iter(reader.parts), None)
    schema = reader.dataset.read_part(part, ["answer"]).schema if part else pa.schema([])
    return schema.field("answer") if "answer" in schema.names else pa.field("answer", pa.string())


def build_truth_table(found: Mapping[str, Any], answer_field: pa.Field) -> pa.Table:
    """A column for each field that any truth has: a field that it does not have is not compared. An answer that is no
    object is in the column `truth`."""
    ids = pa.array(list(found), pa.string())
    if not pa.types.is_struct(answer_field.type):
        values = [type_truth(value, answer_field, row_id) for row_id, value in found.items()]
        return pa.table({"id": ids, TRUTH_COLUMN: pa.array(values, answer_field.type)})
    answers = {row_id: value if isinstance(value, Mapping) else json.loads(value) for row_id, value in found.items()}
    names = {name for answer in answers.values() for name in answer}
    columns = {"id": ids}
    for member in answer_field.type:
        if member.name in names:
            values = [type_truth(answer.get(member.name), member, row_id) for row_id, answer in answers.items()]
            columns[member.name] = pa.array(values, member.type)
    return pa.table(columns)
