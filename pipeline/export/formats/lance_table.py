"""The format `lance`: rows are appended to a Lance table, with the extra `pylance`. Transactions name their groups."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.export.table_appender import GROUP_KEY, TableAppender
from pipeline.fetch.storage_clients import get_object_store_options
from pipeline.registry import import_extra


class LanceExporter(TableAppender):
    @cached_property
    def library(self) -> Any:
        return import_extra("lance", "pylance")

    @property
    def place(self) -> dict[str, Any]:
        path = self.task.target.path.removeprefix("file://")
        return {"uri": path, "storage_options": get_object_store_options(path)}

    def is_table(self) -> bool:
        return bool(self.task.target.list_names("_versions"))

    def has_group(self, name: str) -> bool:
        if not self.is_table():
            return False
        table = self.library.dataset(**self.place)
        transactions = (table.read_transaction(each["version"]) for each in reversed(table.versions()))
        return any((each.transaction_properties or {}).get(GROUP_KEY) == name for each in transactions if each)

    def append(self, name: str, rows: pa.RecordBatchReader) -> None:
        mode = "append" if self.is_table() else "create"
        self.library.write_dataset(rows, **self.place, mode=mode, transaction_properties={GROUP_KEY: name})

    def list_error_types(self) -> tuple[type[Exception], ...]:
        return OSError, ValueError
