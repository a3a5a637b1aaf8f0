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
        self.paths: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="vlbatch-")))
        self.open_writers = self.stack.enter_context(ExitStack())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def get_writer(self, split: str) -> WriterT:
        if split not in self.writers:
            self.paths[split] = self.folder / str(len(self.paths))
            self.writers[split] = self.open_writers.enter_context(self.open_file(self.paths[split]))
        return self.writers[split]

    def upload(self) -> list[str]:
        """Close and upload all files; returns their names."""
        self.open_writers.close()
        names = {self.name_file(split): path for split, path in self.paths.items()}
        for name, path in names.items():
            self.target.upload_file(name, path)
        return sorted(names)


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
