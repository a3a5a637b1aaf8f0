"""The format `delta`: rows are appended to a Delta table, with the extra `deltalake`.

A group is a transaction of Delta, whose application is the group's name.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.export.table_appender import GROUP_KEY, TableAppender
from pipeline.fetch.storage_clients import get_object_store_options
from pipeline.registry import import_extra


class DeltaExporter(TableAppender):
    @cached_property
    def library(self) -> Any:
        return import_extra("deltalake", "deltalake")

    @property
    def place(self) -> dict[str, Any]:
        path = self.task.target.path.removeprefix("file://")
        return {"table_uri": path, "storage_options": get_object_store_options(path)}

    def has_group(self, name: str) -> bool:
        is_table = self.library.DeltaTable.is_deltatable(**self.place)
        return is_table and self.library.DeltaTable(**self.place).transaction_version(name) is not None

    def append(self, name: str, rows: pa.RecordBatchReader) -> None:
        place = self.place
        properties = self.library.CommitProperties(
            custom_metadata={GROUP_KEY: name}, app_transactions=[self.library.Transaction(name, 1)]
        )
        self.library.write_deltalake(
            place["table_uri"],
            rows,
            mode="append",
            storage_options=place["storage_options"],
            commit_properties=properties,
        )

    def list_error_types(self) -> tuple[type[Exception], ...]:
        return self.library.exceptions.DeltaError, OSError, ValueError, NotImplementedError
