"""Where rows come from. A source lists spans of a file that are read again, alone, by whoever works on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

Span = tuple[int, int]  # from, to: in whatever unit the source finds again quickest


class Source(Protocol):
    """One file (or folder) of rows. Built as `Source(url)`; opening it twice gives the same rows."""

    def read_schema(self) -> pa.Schema: ...

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        """The file cut into spans of so many consecutive rows; the last may hold fewer."""
        ...

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table: ...
