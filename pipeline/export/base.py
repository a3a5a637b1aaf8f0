"""The seam between an export and a format.

The export chooses the rows, resumes, and checks that every row of the manifest is accounted for. A format only writes
files, one group of rows at a time. It says which options it can follow; the export refuses the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from pipeline.context import RunContext
from pipeline.export.media_files import MediaFiles
from pipeline.export.remarks import Remarks
from pipeline.export.splits import Splits
from pipeline.output.store import OutputStore

MEDIA_CHOICES = ("copy", "link", "none")  # bytes in the export, the URIs of the originals, or names alone


@dataclass(frozen=True, slots=True)
class ExportOptions:
    rows_per_file: int = 1_000_000  # at most, unless a single part has more
    partition_by: tuple[str, ...] = ()  # columns, or fields such as answer.currency
    calibrated: bool = False  # whether the column `confidence` is calibrated by the newest score
    where: str | None = None  # an expression of DuckDB over the columns
    splits: Splits = ()
    truth: str | None = None  # a file of corrections, which replace what the model answered
    media: str | None = None  # one of MEDIA_CHOICES; None: the format's first choice, if it has any
    push: str | None = None  # a repository of the Hugging Face hub, for formats with `can_push`

    def identify(self) -> dict[str, Any]:
        """What these options change in an export. Empty for an export of an earlier version."""
        options = {"where": self.where, "split": [list(split) for split in self.splits], "media": self.media}
        return {name: value for name, value in options.items() if value}


@dataclass(frozen=True, slots=True)
class ExportTask:
    """Everything that a format may ask about an export."""

    context: RunContext  # the job, its schema and its fingerprint
    columns: pa.Schema  # of every table that the format gets
    target: OutputStore
    options: ExportOptions
    media_files: MediaFiles  # reads the media of rows, by the access rules of the job
    named_target: str = ""  # as it was given; `target` is the folder of a table that a catalog names
    remarks: Remarks = field(default_factory=Remarks)  # on the group that is being written; said when all are written


class Exporter(Protocol):
    can_partition: ClassVar[bool]  # whether it follows --partition-by
    can_split: ClassVar[bool]  # whether it follows --split
    media_choices: ClassVar[Sequence[str]]  # those of MEDIA_CHOICES that it follows, its default first; may be empty

    def __init__(self, task: ExportTask):
        """Raise an OutputError for options or a schema that the format cannot follow. Nothing is written yet."""

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        """Write the rows of a group, which come in the manifest's order, and return the files' paths in the target.

        The group's name is unique and belongs in the file names. After an interruption the group is written again,
        so files are overwritten, with the same bytes.
        """

    def finish(self, files: Sequence[str]) -> None:
        """Write what describes all files together, such as an index of classes. May run again."""
