"""Selects rows by an expression over their columns, as DuckDB writes it: `answer.total > 100 and 'review' in flags`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError


class RowFilter:
    """Refuses an expression that DuckDB does not understand, or that is not true or false for each row."""

    def __init__(self, expression: str, columns: pa.Schema):
        try:
            import duckdb
        except ImportError as error:
            raise OutputError("--where needs DuckDB (20 MB): pip install 'vlbatch[duckdb]'") from error
        self.expression, self.duckdb_error = expression, duckdb.Error
        # An expression reads no files, however it is written.
        self.connection: Any = duckdb.connect(config={"enable_external_access": False})
        self.select_rows(columns.empty_table())

    def select_rows(self, table: pa.Table) -> pa.Table:
        self.connection.register("answers", table)
        try:
            query = f"select ({self.expression}\n) as is_selected from answers"
            [selected] = self.connection.sql(query).to_arrow_table().columns
        except self.duckdb_error as error:
            names = ", ".join(table.column_names)
            raise OutputError(f"--where {self.expression}: {error}\nThe columns are {names}") from error
        if not pa.types.is_boolean(selected.type) or len(selected) != table.num_rows:
            raise OutputError(
                f"--where {self.expression}: is not true or false for each row; write a condition such as "
                "answer.total > 100 or list_contains(flags, 'review')"
            )
        return table.filter(pc.fill_null(selected, False))
