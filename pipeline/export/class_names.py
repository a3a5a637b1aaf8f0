"""Gives classes their numbers, the same in every export of an output.

The output keeps the list of names. A new name is appended, so a number never changes its meaning. `export.classes` in
the job says which labels mean the same class; a label that it does not name is a class of its own, and a remark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from pipeline.errors import OutputError
from pipeline.export.base import ExportTask
from pipeline.export.pictures import Picture
from pipeline.output.answer.annotations import LABEL_FIELDS
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.output.dataset import add_class_names, read_class_names
from pipeline.output.store import OutputStore
from pipeline.schema.json_schema import SchemaNode, enter_schema, walk_schema

MAX_CLASSES = 10_000


class ClassNames:
    def __init__(self, task: ExportTask):
        job = task.context.job
        self.store, self.remarks, self.is_listed = OutputStore(job.output.path), task.remarks, bool(job.export.classes)
        self.known = {
            fold_label(label): name for name, labels in job.export.classes.items() for label in (name, *labels)
        }
        self.first_names = list(job.export.classes)
        if not self.is_listed and task.context.schema:
            self.first_names = find_label_choices(task.context.schema.json_schema)
        self.names: list[str] = []
        self.numbers: dict[str, int] = {}

    def find_numbers(self, labels: Sequence[str]) -> list[int]:
        """The number of each label's class, from 0. Names that are new are kept in the output first."""
        names = [self.find_name(label) for label in labels]
        if not self.names or not self.numbers.keys() >= set(names):
            self.add_names([*self.first_names, *names])
        return [self.numbers[name] for name in names]

    def number_boxes(self, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, list[int]]]:
        """Each picture with the numbers of its boxes. New names of all of them are kept at once."""
        numbers = iter(self.find_numbers([box.label for picture in pictures for box in picture.annotations]))
        for picture in pictures:
            yield picture, [next(numbers) for _ in picture.annotations]

    def find_name(self, label: str) -> str:
        name = self.known.get(fold_label(label))
        if name is None:
            name = " ".join(label.split())
            if self.is_listed:
                self.remarks.add(f"box of the class {name!r}, which export.classes does not name")
        return name

    def add_names(self, names: Iterable[str]) -> None:
        names = list(dict.fromkeys(names))
        if len({*read_class_names(self.store)[1], *names}) > MAX_CLASSES:
            raise OutputError(
                f"the labels are free text: there are more than {MAX_CLASSES:,} classes. Say in the job which labels "
                "mean the same, in export.classes, or give the schema's label a list of choices (Literal). Then delete "
                f"{self.store.path}/classes, unless other exports count on its numbers, and export again"
            )
        self.names = add_class_names(self.store, names)
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def list_names(self) -> list[str]:
        """All names, by their numbers."""
        if not self.names:
            self.add_names(self.first_names)
        return self.names

    def write_file(self, target: OutputStore) -> None:
        """`classes.json`: the number of each name."""
        names = self.list_names()
        text = json.dumps({name: number for number, name in enumerate(names)}, ensure_ascii=False, indent=1)
        target.overwrite("classes.json", text.encode())


def fold_label(label: str) -> str:
    """
    >>> fold_label(" A  Dog")
    'a dog'
    """
    return " ".join(label.split()).casefold()


def find_label_choices(schema: SchemaNode) -> list[str]:
    """The labels that a schema allows for objects with a place; empty for free text.

    >>> label, box = {"enum": ["dog", "cat"]}, {"type": "array"}
    >>> find_label_choices({"properties": {"label": label, "bbox_2d": box}})
    ['dog', 'cat']
    """
    meanings = find_field_meanings(schema)
    choices: list[str] = []
    for _, node in walk_schema(schema):
        members = node.get("properties", {})
        label = next((members[name] for name in LABEL_FIELDS if name in members), None)
        cursor = enter_schema(label, schema) if not meanings.keys().isdisjoint(members) else None
        choices += [value for value in (cursor.constants if cursor else None) or () if isinstance(value, str)]
    return list(dict.fromkeys(choices))
