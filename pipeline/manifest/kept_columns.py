"""The columns that a job copies to its output: one type over all files of the manifest, and values of that type.

Where a file fixes no types (JSONL, CSV) and another disagrees with it, the column becomes text, and values that are not
text become JSON text: that is what JSONL does with a column of mixed types, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError, ReadError
from pipeline.manifest.column_selection import holds_bytes
from pipeline.manifest.files import ManifestFile

TEXT_TYPES = ("string", "large_string", "string_view")


def unify_kept_schema(names: Sequence[str], files: Sequence[ManifestFile], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """JobError where two files disagree. `schemas` are those of the files."""
    return pa.schema(
        [(name, unify_column_type(name, files, [schema.field(name).type for schema in schemas])) for name in names]
    )


def unify_column_type(name: str, files: Sequence[ManifestFile], types: Sequence[pa.DataType]) -> pa.DataType:
    first_files: dict[pa.DataType, ManifestFile] = {}
    for file, data_type in zip(files, types, strict=True):
        first_files.setdefault(data_type, file)
    may_be_text = any(file.source_class.infers_types for file in files) and not any(map(holds_bytes, first_files))
    try:
        unified = merge_types(list(first_files))
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        if may_be_text:
            return pa.string()
        places = " and ".join(f"{data_type} in {file.url}" for data_type, file in first_files.items())
        raise JobError(f"input.keep: column {name} is {places}; give it one type in all files") from error
    return pa.string() if pa.types.is_null(unified) and may_be_text else unified


def merge_types(types: Sequence[pa.DataType]) -> pa.DataType:
    """The narrowest type that holds all; null fits every type."""
    if len(types) == 1:
        return types[0]
    plain_types = [data_type.value_type if pa.types.is_dictionary(data_type) else data_type for data_type in types]
    schemas = [pa.schema([("column", data_type)]) for data_type in plain_types]
    return pa.unify_schemas(schemas, promote_options="permissive").field("column").type


def convert_kept_rows(
    file: ManifestFile, rows: Sequence[Mapping[str, Any]], kept_schema: pa.Schema
) -> list[dict[str, Any] | ReadError]:
    """The kept values of each row, in the types of the schema; an error for a row with a value that does not fit."""
    try:
        return [*convert_kept_values(file, rows, kept_schema)]
    except ReadError as error:
        return [error] if len(rows) == 1 else [convert_kept_rows(file, [row], kept_schema)[0] for row in rows]


def convert_kept_values(
    file: ManifestFile, rows: Sequence[Mapping[str, Any]], kept_schema: pa.Schema
) -> list[dict[str, Any]]:
    columns = {field.name: convert_column(file, [row[field.name] for row in rows], field) for field in kept_schema}
    return [{name: values[index] for name, values in columns.items()} for index in range(len(rows))]


def convert_column(file: ManifestFile, values: Sequence[Any], field: pa.Field) -> list[Any]:
    try:
        if str(field.type) in TEXT_TYPES:
            values = [value if isinstance(value, str | None) else format_json(value) for value in values]
        elif file.source_class.infers_types:  # whose sample may have had no value, and then gives JSON text
            values = [json.loads(value) if isinstance(value, str) else value for value in values]
        pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError) as error:
        problem = f"column {field.name} (input.keep) is {field.type} in the other files of the manifest, not here"
        raise ReadError("row", f"{file.url}: {problem}: {error}; give it one type in all files") from error
    return list(values)


def format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
