"""The files of one group, one for each split. They are written on this machine first and uploaded whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import pyarrow as pa

from pipeline.export.splits import Splits, choose_split
from pipeline.output.store import OutputStore

WriterT = TypeVar("WriterT")


class SplitFiles(Generic[WriterT]):
    """`name_file` gives the name in the export of a split's file, and `open_file` opens a file of this machine."""

    def __init__(
        self,
        target: OutputStore,
        name_file: Callable[[str], str],
        open_file: Callable[[Path], AbstractContextManager[WriterT]],
    ):
        self.target, self.name_file, self.open_file = target, name_file, open_file
        self.writers: dict[str, WriterT] = {}
        self.open_files: dict[str, ExitStack] = {}
        self.names: list[str] = []

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="vlbatch-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.open_files.values():
            file.close()
        self.folder.cleanup()

    def get_writer(self, split: str) -> WriterT:
        if split not in self.writers:
            self.open_files[split] = ExitStack()
            self.writers[split] = self.open_files[split].enter_context(self.open_file(self.get_path(split)))
        return self.writers[split]

    def get_path(self, split: str) -> Path:
        return Path(self.folder.name, split.replace("/", "~") or "all")

    def upload_file(self, split: str) -> None:
        """Close and upload a file that is complete."""
        del self.writers[split]
        self.open_files.pop(split).close()
        self.names.append(self.name_file(split))
        self.target.upload_file(self.names[-1], self.get_path(split))
        self.get_path(split).unlink()

    def upload(self) -> list[str]:
        """Upload all files; returns their names."""
        for split in list(self.writers):
            self.upload_file(split)
        return sorted(self.names)


def split_table(table: pa.Table, splits: Splits) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each split, in their order."""
    if not splits:
        yield "", table
        return
    chosen = [choose_split(row_id, splits) for row_id in table["id"].to_pylist()]
    for split in dict.fromkeys(chosen):
        yield split, table.filter(pa.array([name == split for name in chosen]))


def name_in_split(split: str, name: str) -> str:
    return f"{split}/{name}" if split else name
