"""The seam between an export and a format.

The export chooses the rows, resumes, and checks that every row of the manifest is accounted for. A format only writes
files, one group of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.context import RunContext
from pipeline.output.store import OutputStore


@dataclass(frozen=True, slots=True)
class ExportOptions:
    rows_per_file: int = 1_000_000  # at most, unless a single part has more
    partition_by: tuple[str, ...] = ()  # columns, or fields such as answer.currency
    calibrated: bool = False  # whether the column `confidence` is calibrated by the newest score


@dataclass(frozen=True, slots=True)
class ExportTask:
    """Everything that a format may ask about an export."""

    context: RunContext  # the job, its schema and its fingerprint
    columns: pa.Schema  # of every table that the format gets
    target: OutputStore
    options: ExportOptions


class Exporter(Protocol):
    def __init__(self, task: ExportTask):
        """Raise an OutputError for options that the format cannot follow. Nothing is written yet."""

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        """Write the rows of a group, which come in the manifest's order, and return the files' paths in the target.

        The group's name is unique and belongs in the file names. After an interruption the group is written again,
        so files are overwritten.
        """

    def finish(self, files: Sequence[str]) -> None:
        """Write what describes all files together, such as an index of classes. May run again."""
