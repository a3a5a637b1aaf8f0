"""Iceberg tables, with the extra `pyiceberg`: the Parquet files of one snapshot.

The newest metadata file in the table's folder counts. A catalog may know better: `iceberg://CATALOG/namespace.table`
asks it, as pyiceberg is configured. Files of deletes, which some engines write instead of new data files, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.manifest.sources.base import TableParts
from pipeline.manifest.sources.parquet_part import ParquetPartSource, check_file_place, describe_part
from pipeline.registry import import_extra

METADATA_ENDING = ".metadata.json"
METADATA_NUMBER = re.compile(r"/v?(\d+)[^/]*\.metadata\.json$")
FILE_IO = {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}  # takes credentials from the environment, as we do


class IcebergSource(ParquetPartSource):
    @classmethod
    def is_table(cls, filesystem: Any, path: str) -> bool:
        if path.endswith(METADATA_ENDING):
            return True
        return bool(filesystem.isdir(f"{path}/metadata") and filesystem.glob(f"{path}/metadata/*{METADATA_ENDING}"))

    @classmethod
    def list_parts(cls, url: str, choice: Mapping[str, str]) -> TableParts:
        metadata_url = url if url.endswith(METADATA_ENDING) else find_newest_metadata(url)
        folder = metadata_url.rpartition("/metadata/")[0]
        pyiceberg_table = import_extra("pyiceberg.table", "pyiceberg")
        try:
            table = pyiceberg_table.StaticTable.from_metadata(metadata_url, FILE_IO)
            snapshot = choose_snapshot(table, choice.get("version"))
            tasks = [] if snapshot is None else list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
        except (OSError, ValueError) as error:
            raise JobError(f"input.manifest: {url}: is not an Iceberg table that can be read ({error})") from error
        if snapshot is None:
            return TableParts(folder, [])
        table_schema = table.schemas().get(snapshot.schema_id, table.schema())
        schema = pa.schema([field.with_nullable(True) for field in table_schema.as_arrow()])
        field_ids = {field.name: field.field_id for field in table_schema.fields}
        parts = []
        for task in tasks:
            if task.delete_files:
                advice = "merge them into the data files with Spark's rewrite_data_files"
                raise JobError(f"input.manifest: {url}: has rows that are deleted by files of deletes; {advice}")
            if str(task.file.file_format).rpartition(".")[2].upper() != "PARQUET":
                raise JobError(f"input.manifest: {url}: {task.file.file_path} is not Parquet")
            parts.append(
                describe_part(
                    check_file_place(folder, task.file.file_path),
                    schema,
                    constants=list_partition_values(table, table_schema, task.file),
                    field_ids=field_ids,
                )
            )
        return TableParts(folder, sorted(parts))


def find_newest_metadata(url: str) -> str:
    """Catalogs number the metadata files of a table."""
    filesystem, path = fsspec.core.url_to_fs(url)
    numbered = {name: METADATA_NUMBER.search(name) for name in filesystem.glob(f"{path}/metadata/*{METADATA_ENDING}")}
    newest = max(numbered, key=lambda name: (int(match[1]) if (match := numbered[name]) else -1, name))
    metadata_url: str = filesystem.unstrip_protocol(newest)
    return metadata_url


def choose_snapshot(table: Any, version: str | None) -> Any:
    """The current snapshot, or the one with an id, a branch or a tag. None of a table that holds nothing yet."""
    if version is None:
        return table.current_snapshot()
    snapshot = table.snapshot_by_id(int(version)) if version.isdecimal() else table.snapshot_by_name(version)
    if snapshot is None:
        known = ", ".join(str(known.snapshot_id) for known in table.snapshots()[-5:])
        raise ValueError(f"there is no snapshot {version}; the last ones are {known}")
    return snapshot


def list_partition_values(table: Any, schema: Any, file: Any) -> dict[str, Any]:
    """The values of columns by which the table is divided: files that came from Hive lack these columns."""
    fields = table.specs()[file.spec_id].fields
    return {
        schema.find_column_name(field.source_id): file.partition[number]
        for number, field in enumerate(fields)
        if str(field.transform) == "identity"
    }
