"""One Parquet file of a table: the columns of the table, whatever the file has of them.

The file may lack columns that the table got later, keep the values of its partition in the table's log, have columns
under former names, and hold rows that were deleted. A part says all this, so that workers read nothing but the file.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobError
from pipeline.manifest.sources.base import Span, TablePartSource, split_rows
from pipeline.manifest.sources.parquet import ParquetSource

FIELD_ID_KEY = b"PARQUET:field_id"


def describe_part(
    file: str,
    schema: pa.Schema,
    *,
    constants: Mapping[str, Any] | None = None,
    field_ids: Mapping[str, int] | None = None,
    keep_mask: NDArray[np.bool_] | None = None,
) -> str:
    """`constants` are values of columns that the file lacks; `field_ids` find columns that had other names; `keep_mask`
    is False for rows that were deleted."""
    values = pa.Table.from_pylist([dict(constants or {})], schema=schema.remove_metadata())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, values.schema) as writer:
        writer.write_table(values)
    part: dict[str, Any] = {"file": file, "values": encode_bytes(sink.getvalue().to_pybytes())}
    if field_ids:
        part["field_ids"] = dict(field_ids)
    if keep_mask is not None:
        part["kept"] = encode_bytes(np.packbits(keep_mask).tobytes())
    return json.dumps(part)


def check_file_place(table_url: str, file: str) -> str:
    """A table must not make a run read files elsewhere: whoever wrote it may be a stranger."""
    filesystem, path = fsspec.core.url_to_fs(file)
    folder = fsspec.core.url_to_fs(table_url)[1].rstrip("/")
    if not path.startswith(f"{folder}/") or ".." in path.split("/"):
        raise JobError(f"input.manifest: {table_url}: its data file {file} lies outside of its folder")
    url: str = filesystem.unstrip_protocol(path)
    return url


class ParquetPartSource(TablePartSource, ParquetSource):
    file_endings = ()  # it is not found by the name of its file

    def __init__(self, url: str, part: str = ""):
        self.description: Mapping[str, Any] = json.loads(part)
        ParquetSource.__init__(self, self.description["file"])

    @cached_property
    def values(self) -> pa.Table:
        """One row with the schema of the table, and the values that the file lacks."""
        return pa.ipc.open_stream(decode_bytes(self.description["values"])).read_all()

    @cached_property
    def kept_rows(self) -> NDArray[np.int64] | None:
        """The numbers of the rows that were not deleted; None if none was."""
        if "kept" not in self.description:
            return None
        bits = np.unpackbits(np.frombuffer(decode_bytes(self.description["kept"]), np.uint8))
        return np.flatnonzero(bits[: self.footer.num_rows])

    @cached_property
    def file_names(self) -> Mapping[str, str]:
        """The names in the file of the columns that it has."""
        fields = list(self.footer.schema.to_arrow_schema())
        names = {field.name: field.name for field in fields}
        field_ids = {int(field.metadata[FIELD_ID_KEY]): field.name for field in fields if has_field_id(field)}
        if field_ids and "field_ids" in self.description:
            wanted = self.description["field_ids"]
            names = {name: field_ids[wanted[name]] for name in wanted if wanted[name] in field_ids}
        return names

    def read_schema(self) -> pa.Schema:
        return self.values.schema

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return split_rows(self.footer.num_rows if self.kept_rows is None else len(self.kept_rows), rows_per_span)

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        schema = self.read_schema()
        selected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        names = [self.file_names[name] for name in selected.names if name in self.file_names]
        rows = self.read_file_rows(span, names or [self.footer.schema.to_arrow_schema().names[0]])
        arrays = []
        for field in selected:
            if field.name in self.file_names:
                arrays.append(self.convert_column(rows[self.file_names[field.name]], field))
            else:
                arrays.append(pa.repeat(self.values[field.name][0], rows.num_rows))
        return pa.table(arrays, schema=selected)

    def read_file_rows(self, span: Span, names: Sequence[str]) -> pa.Table:
        if self.kept_rows is None:
            return ParquetSource.read_span(self, span, names)
        numbers = self.kept_rows[slice(*span)]
        rows = ParquetSource.read_span(self, (int(numbers[0]), int(numbers[-1]) + 1), names)
        return rows.take(numbers - numbers[0])

    def convert_column(self, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
        try:
            return column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            problem = f"column {field.name} is {column.type} in this file and {field.type} in its table"
            raise JobError(f"{self.url}: {problem}, and cannot be converted ({error})") from error


def has_field_id(field: pa.Field) -> bool:
    return FIELD_ID_KEY in (field.metadata or {})


def encode_bytes(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def decode_bytes(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
