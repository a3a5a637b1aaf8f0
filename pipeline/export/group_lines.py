"""Keeps what a group adds to a file that describes the whole export, until all groups are written.

Lines of JSON in pieces of bounded size, by split, in `_groups/`. Reading them holds one piece at a time.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.output.store import OutputStore

LINES_PER_PIECE = 10_000


class GroupLines:
    def __init__(self, target: OutputStore, group_name: str):
        self.target, self.group_name = target, group_name
        self.lines: dict[str, list[str]] = defaultdict(list)  # by split
        self.files: list[str] = []

    def add(self, split: str, value: Any) -> None:
        self.lines[split].append(dump(value))
        if len(self.lines[split]) >= LINES_PER_PIECE:
            self._write_piece(split)

    def close(self) -> list[str]:
        """The names of all pieces."""
        for split in sorted(self.lines):
            self._write_piece(split)
        return self.files

    def _write_piece(self, split: str) -> None:
        file = f"_groups/{self.group_name}/{len(self.files):04}{split and '.'}{split}.jsonl.gz"
        text = "\n".join(self.lines.pop(split))
        self.target.overwrite(file, gzip.compress(text.encode(), 3, mtime=0))
        self.files.append(file)


def read_group_lines(target: OutputStore, files: Sequence[str], split: str = "") -> Iterator[Any]:
    for file in files:
        if file.rpartition("/")[2].split(".")[1:-2] == ([split] if split else []):
            for line in gzip.decompress(target.read_object(file)).decode().split("\n"):
                yield json.loads(line)


@contextmanager
def write_text_file(target: OutputStore, name: str) -> Iterator[IO[str]]:
    """A large file, written on this machine first."""
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
        path = Path(folder, "file")
        with open(path, "w", encoding="utf-8") as file:
            yield file
        target.upload_file(name, path)


def write_elements(file: IO[str], elements: Iterable[str]) -> None:
    """The elements of a JSON list or object, one in each line."""
    for number, element in enumerate(elements):
        file.write(f"{',' if number else ''}\n{element}")


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
