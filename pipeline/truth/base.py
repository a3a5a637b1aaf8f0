"""The seam for truths: a reader turns one kind of file into true answers, each with the names its row may have.

To add a format, write a subclass of TruthReader and name it in registry.TRUTHS.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import fsspec

from pipeline.errors import OutputError
from pipeline.truth.compared_fields import ComparedField


class TrueAnswer(NamedTuple):
    names: tuple[str, ...]  # of the row, the surest first: ids, then names of files
    answer: Any  # in the shape of the schema
    in_fractions: bool = False  # its boxes are fractions of the picture


@dataclass(frozen=True)
class TruthFile:
    """A file with truths, and what it is read for."""

    url: str
    id_column: str
    root: ComparedField  # the shape of an answer

    @cached_property
    def document(self) -> Any:
        """The content of a JSON file; None for other files."""
        if not self.url.lower().endswith(".json"):
            return None
        try:
            with fsspec.open(self.url, "rb") as file:
                return json.load(file)
        except (OSError, ValueError) as error:
            raise OutputError(f"--truth {self.url}: cannot be read as JSON ({error})") from error

    def find_list(self, kind: str) -> ComparedField:
        """The field of the answer that lists boxes, or points."""
        found = next((part for part in self.root.members if part.kind == kind), None)
        if found is None:
            raise OutputError(f"--truth {self.url} holds {kind}, and the schema of the answers has no list of {kind}")
        return found


class TruthReader(ABC):
    description: ClassVar[str] = ""  # for messages
    is_about_pictures: ClassVar[bool] = False  # a row of several pictures then has a truth for each

    def __init__(self, file: TruthFile):
        self.file = file

    @classmethod
    @abstractmethod
    def can_read(cls, file: TruthFile) -> bool: ...

    @abstractmethod
    def read(self) -> Iterator[TrueAnswer]: ...


def list_file_names(path: str) -> tuple[str, ...]:
    """A path, and the names that rows may have instead.

    >>> list_file_names("train/dogs/7.jpg")
    ('train/dogs/7.jpg', '7.jpg', '7')
    """
    name = path.rpartition("/")[2]
    return tuple(dict.fromkeys([path, name, name.rpartition(".")[0] or name]))
