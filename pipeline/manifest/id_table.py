"""Reads the ids that a table names: Parquet, JSONL or CSV with a column of ids."""

from __future__ import annotations

from pipeline.errors import JobError
from pipeline.manifest.files import ManifestFile, detect_source_kind
from pipeline.manifest.row_keys import format_row_id

ID_COLUMN = "id"
ROWS_PER_READ = 100_000


def read_column_names(url: str, *, option: str) -> list[str]:
    kind = detect_source_kind(url)
    if kind is None:
        raise JobError(f"{option} {url}: give a table (Parquet, JSONL or CSV) with a column `id`")
    try:
        return list(ManifestFile(url, kind).open_source().read_schema().names)
    except OSError as error:
        raise JobError(f"{option} {url}: {error}") from error


def read_ids(url: str, *, option: str) -> set[str]:
    """Of all rows of the table. `option` is named in errors."""
    names = read_column_names(url, option=option)
    if ID_COLUMN not in names:
        raise JobError(f"{option} {url} has no column {ID_COLUMN}; it has {', '.join(names)}")
    source = ManifestFile(url, detect_source_kind(url) or "").open_source()
    try:
        tables = map(source.read_span, source.list_spans(ROWS_PER_READ))
        ids = {format_row_id(value) for table in tables for value in table[ID_COLUMN].to_pylist()}
        return {row_id for row_id in ids if row_id is not None}
    except OSError as error:
        raise JobError(f"{option} {url}: {error}") from error
