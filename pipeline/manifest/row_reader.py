"""Reads the rows of one manifest file, and their keys.

Planning reads only the columns that decide the question; the worker that gets a chunk reads its rows again. Media given
as bytes are not part of a question, because planning would have to read all of them: the id of the row stands for them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.column_selection import holds_bytes, select_file_columns
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.nested_columns import add_nested_columns, add_nested_fields, list_root_columns
from pipeline.manifest.row_keys import format_row_id, has_relative_paths, hash_question, list_row_sources
from pipeline.manifest.row_versions import NO_DIGEST
from pipeline.manifest.sources.base import Span


class ManifestRow(NamedTuple):
    values: Mapping[str, Any]
    id: str
    question: str  # a hash of what the row asks
    version_digest: bytes = NO_DIGEST


class RowReader:
    """One manifest file, open. A caller that reads spans in order decodes each row once."""

    def __init__(self, job: Job, file: ManifestFile, schema_prompt: str | None):
        self.file, self.source = file, file.open_source()
        file_schema = self.source.read_schema()
        self.file_columns = file_schema.names
        self.columns = select_file_columns(job, file, file_schema, schema_prompt)
        schema = add_nested_fields(file_schema, self.columns.media)
        binary = {name for name in self.columns.media if holds_bytes(schema.field(name).type)}
        self.reads_media = bool(binary)  # with the rows, because the manifest holds them as bytes
        self.hashed_columns = [name for name in self.columns.question_columns if name not in binary]
        self.id_columns = [self.columns.id] if self.columns.id else []
        # Where values may turn out to have another type than the file began with, planning finds it, not a paid run.
        self.checked_columns = self.columns.kept if self.source.infers_types else ()

    def read_key_columns(self, span: Span) -> pa.Table:
        """What planning needs of each row: without media given as bytes."""
        return self._read_span(span, dict.fromkeys([*self.hashed_columns, *self.id_columns, *self.checked_columns]))

    def read_rows(
        self, span: Span, *, with_binary_media: bool = True, version_digests: Sequence[bytes] = ()
    ) -> list[ManifestRow]:
        asked = self.columns.question_columns if with_binary_media else self.hashed_columns
        names = dict.fromkeys([*asked, *self.columns.kept, *self.id_columns])
        table = self._read_span(span, names)
        if len(version_digests) != table.num_rows:  # another manifest than was planned: its questions are others
            version_digests = ()
        keys, rows = self.compute_keys(table, version_digests), to_python_rows(table, self.file.url)
        digests = version_digests or [NO_DIGEST] * len(rows)
        return [ManifestRow(row, *key, digest) for row, key, digest in zip(rows, keys, digests, strict=True)]

    def _read_span(self, span: Span, names: Iterable[str]) -> pa.Table:
        table = self.source.read_span(span, list_root_columns(names, self.file_columns))
        return add_nested_columns(table, names, self.file.url)

    def compute_keys(self, table: pa.Table, version_digests: Sequence[bytes] = ()) -> list[tuple[str, str]]:
        """(id, question) of each row. Without an id column the question is the id, too."""
        url, rows = self.file.url, self.read_asked_values(table)
        digests = version_digests or [NO_DIGEST] * len(rows)
        questions = [
            hash_question(row, self._describe_media(row, digest)) for row, digest in zip(rows, digests, strict=True)
        ]
        if not self.columns.id:
            return [(question, question) for question in questions]
        ids = [format_row_id(row[self.columns.id]) for row in to_python_rows(table.select(self.id_columns), url)]
        if None in ids:
            row_number = ids.index(None)
            place = f"in the row after {ids[row_number - 1]!r}" if row_number else "in a row"
            problem = f"column {self.columns.id} (input.id) is empty {place}"
            raise JobError(f"{url}: {problem}; fill it in, or leave input.id out")
        folder = self.file.place if self.source.has_ids_of_file and self.columns.id == self.source.default_id else ""
        return [
            (posixpath.join(folder, row_id), question)
            for row_id, question in zip(ids, questions, strict=True)
            if row_id is not None
        ]

    def read_asked_values(self, table: pa.Table) -> list[dict[str, Any]]:
        """The columns that decide the questions, row by row."""
        names = self.hashed_columns
        return to_python_rows(table.select(names), self.file.url) if names else [{}] * table.num_rows

    def list_uris(self, row: Mapping[str, Any], base_folder: str) -> list[str]:
        """The URIs of a row's media, also of those in a chat. Columns that may hold bytes do not count."""
        media = [name for name in self.columns.media if name in self.hashed_columns]
        return list_row_sources(row, media, self.columns.messages, base_folder)

    def _describe_media(self, row: Mapping[str, Any], version_digest: bytes) -> dict[str, str]:
        """What the media of a row add to its question beside their names."""
        has_place = self.file.place and has_relative_paths(self.list_uris(row, base_folder=""))
        place = {"folder": self.file.place} if has_place else {}
        return place if version_digest == NO_DIGEST else place | {"versions": version_digest.hex()}


def to_python_rows(table: pa.Table, url: str) -> list[dict[str, Any]]:
    """Parquet does not check its values: text may not be UTF-8, and a date may lie beyond the year 9999."""
    try:
        return list(table.to_pylist())
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        columns = ", ".join(table.column_names)
        raise JobError(f"{url}: a value of {columns} cannot be read ({error}); write the file again") from error
