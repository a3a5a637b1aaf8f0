"""Keeps manifest rows on disk until the source that answers them is exported. SQLite finds them in little memory."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable

from pipeline.export.chunk_rows import ChunkRow


class RowSpool:
    """Rows by the number of their source, in the order in which they were added."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect("")  # a temporary file that disappears when it is closed
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute("CREATE TABLE rows (source INTEGER, row BLOB)")

    def add_rows(self, rows: Iterable[tuple[int, ChunkRow]]) -> None:
        self.connection.executemany(
            "INSERT INTO rows VALUES (?, ?)", ((source, pickle.dumps(row)) for source, row in rows)
        )

    def build_index(self) -> None:
        """To be called once, after the last row was added."""
        self.connection.execute("CREATE INDEX by_source ON rows (source)")

    def read_rows(self, source: int) -> list[ChunkRow]:
        found = self.connection.execute("SELECT row FROM rows WHERE source = ? ORDER BY rowid", (source,))
        return [pickle.loads(row) for (row,) in found]

    def close(self) -> None:
        self.connection.close()
