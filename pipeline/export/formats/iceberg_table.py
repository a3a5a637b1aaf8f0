"""The format `iceberg`: rows are appended to a table of a catalog, with the extra `pyiceberg`.

The target is `iceberg://CATALOG/namespace.table`, as pyiceberg is configured. The table is created if there is none.
The summary of a snapshot names its group.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.export.table_appender import GROUP_KEY, TableAppender
from pipeline.manifest.tables import CATALOG_SCHEME
from pipeline.registry import import_extra


class IcebergExporter(TableAppender):
    own_entries = frozenset({"metadata", "data"})

    @classmethod
    def locate_target(cls, target_path: str, columns: pa.Schema) -> str:
        """Creates the table, which then has a folder."""
        catalog_name, _, identifier = target_path.removeprefix(CATALOG_SCHEME).partition("/")
        if not target_path.startswith(CATALOG_SCHEME) or "." not in identifier:
            raise OutputError(f"{target_path}: name a table of a catalog, iceberg://CATALOG/namespace.table")
        try:
            catalog = import_extra("pyiceberg.catalog", "pyiceberg").load_catalog(catalog_name)
            catalog.create_namespace_if_not_exists(identifier.rpartition(".")[0])
            table = catalog.create_table_if_not_exists(identifier, columns)
        except list_iceberg_errors() as error:
            raise OutputError(f"{target_path}: {error}") from error
        return str(table.location())

    def load_table(self) -> Any:
        catalog_name, _, identifier = self.task.named_target.removeprefix(CATALOG_SCHEME).partition("/")
        return import_extra("pyiceberg.catalog", "pyiceberg").load_catalog(catalog_name).load_table(identifier)

    def has_group(self, name: str) -> bool:
        summaries = (snapshot.summary for snapshot in self.load_table().snapshots())
        return any(summary and summary.additional_properties.get(GROUP_KEY) == name for summary in summaries)

    def append(self, name: str, rows: pa.RecordBatchReader) -> None:
        self.load_table().append(rows, snapshot_properties={GROUP_KEY: name})

    def list_error_types(self) -> tuple[type[Exception], ...]:
        return list_iceberg_errors()


def list_iceberg_errors() -> tuple[type[Exception], ...]:
    """What pyiceberg raises."""
    errors = import_extra("pyiceberg.exceptions", "pyiceberg")
    of_catalogs = (errors.RESTError, errors.NoSuchTableError, errors.NoSuchNamespaceError, errors.CommitFailedException)
    return *of_catalogs, errors.ValidationError, OSError, ValueError, NotImplementedError, TypeError
