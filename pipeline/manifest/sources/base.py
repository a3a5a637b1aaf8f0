"""The seam for manifest formats: a source reads one file, or one folder, as rows.

To add a format, write a subclass of Source, TableSource or TablePartSource and name it in registry.SOURCES. A source
cuts its file into spans that any process can read alone later; opening a URL twice must give the same rows in the same
order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

Span = tuple[int, int]  # start and end, in whatever unit the source can seek fastest


class Source(ABC):
    file_endings: ClassVar[tuple[str, ...]] = ()  # in lower case; without any, the source reads a whole folder
    is_found_in_folders: ClassVar[bool] = True  # a folder that holds such a file is a manifest of several files
    infers_types: ClassVar[bool] = False  # from the values, so that another file may have other types
    default_media: ClassVar[tuple[str, ...]] = ()  # columns for a job without input.media
    default_id: ClassVar[str | None] = None  # the column for a job without input.id and input.media
    has_ids_of_file: ClassVar[bool] = False  # ids in `default_id` may come again in a file of another folder

    def __init__(self, url: str):
        self.url = url

    @abstractmethod
    def read_schema(self) -> pa.Schema: ...

    def list_versions(self, version_kind: str) -> Mapping[str, str]:
        """The versions of media, by URI, where reading the manifest tells them. Others are read one by one."""
        return {}

    @abstractmethod
    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        """Cut the file into spans of consecutive rows; only the last may hold fewer rows."""

    def estimate_rows(self) -> int:
        """How many there are, roughly, without reading much of the file; 0 where that is not known."""
        return 0

    @abstractmethod
    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table: ...


class TableSource(Source):
    """A source that reads its file whole, into `table`."""

    @property
    @abstractmethod
    def table(self) -> pa.Table: ...

    def read_schema(self) -> pa.Schema:
        return self.table.schema

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return split_rows(self.table.num_rows, rows_per_span)

    def estimate_rows(self) -> int:
        return len(self.table)

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        rows = self.table.slice(span[0], span[1] - span[0])
        return rows if columns is None else rows.select(list(columns))


class TablePartSource(Source):
    """Reads one part of a table that is a folder. A part is a text that tells this source where its rows are, at a
    version of the table that does not change."""

    choices: ClassVar[tuple[str, ...]] = ("version",)  # what may stand behind the table's URL: #version=3
    needs_choice: ClassVar[bool] = False  # without one, the files of the folder are the manifest

    def __init__(self, url: str, part: str = ""):
        super().__init__(url)
        self.part = part

    @classmethod
    @abstractmethod
    def is_table(cls, filesystem: Any, path: str) -> bool: ...

    @classmethod
    @abstractmethod
    def list_parts(cls, url: str, choice: Mapping[str, str]) -> TableParts:
        """The parts of the chosen version, or of the newest one, in a fixed order. JobError if it cannot be read."""


class TableParts(NamedTuple):
    url: str  # of the table's folder, at which relative paths start
    parts: list[str]


def split_rows(row_count: int, rows_per_span: int) -> Iterator[Span]:
    """Spans for a source that counts in rows."""
    for start in range(0, row_count, rows_per_span):
        yield start, min(start + rows_per_span, row_count)
