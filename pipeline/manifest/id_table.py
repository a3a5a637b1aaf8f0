"""Reads the ids that a table names: Parquet, JSONL or CSV with a column of ids."""

from __future__ import annotations

from pipeline.errors import JobError
from pipeline.manifest.files import ManifestFile, detect_source_kind

ROWS_PER_READ = 100_000


def read_ids(url: str, *, option: str, column: str = "id") -> set[str]:
    """Of all rows of the table. `option` is named in errors."""
    kind = detect_source_kind(url)
    if kind is None:
        raise JobError(f"{option} {url}: give a table (Parquet, JSONL or CSV) with a column {column}")
    try:
        source = ManifestFile(url, kind).open_source()
        names = source.read_schema().names
        if column not in names:
            raise JobError(f"{option} {url} has no column {column}; it has {', '.join(names)}")
        tables = map(source.read_span, source.list_spans(ROWS_PER_READ))
        return {str(row_id) for table in tables for row_id in table[column].to_pylist() if row_id is not None}
    except OSError as error:
        raise JobError(f"{option} {url}: {error}") from error
