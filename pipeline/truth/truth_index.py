"""Finds the truth of a row: in a column that the output kept, or in a file, by the row's id or the name of its file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import OutputError
from pipeline.output.medium_names import name_medium
from pipeline.registry import TRUTHS, load_registered
from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names
from pipeline.truth.compared_fields import ComparedField
from pipeline.truth.truth_table import read_truth_value


@dataclass
class TruthIndex:
    """The truths of a file, or of a kept column. It remembers which were found."""

    where: str
    root: ComparedField
    column: str | None = None  # of the output; truths of a file are in `answers`
    answers: list[TrueAnswer] = field(default_factory=list)
    by_name: dict[str, int | None] = field(default_factory=dict)  # None for names that several truths share
    is_about_pictures: bool = False
    used: dict[str, Any] = field(default_factory=dict)  # the truths that were found, by the id of their row
    used_numbers: set[int] = field(default_factory=set)  # of answers

    def find(self, row: Mapping[str, Any]) -> Any:
        """None for a row without truth."""
        if self.column:
            truth = read_truth_value(row[self.column], self.root, self.column)
        else:
            truth = self.find_answer(row, 0)
            for index in range(1, len(row.get("media") or ()) if self.is_about_pictures else 0):
                truth = self.add_picture(truth, self.find_answer(row, index), index)
        if truth is not None:
            self.used[row["id"]] = truth
        return truth

    def find_answer(self, row: Mapping[str, Any], index: int) -> Any:
        """The truth of a row, or of one of its pictures."""
        names = list_row_names(row) if index == 0 else list_picture_names(row, index)
        number = next((self.by_name[name] for name in names if self.by_name.get(name) is not None), None)
        if number is None:
            return None
        self.used_numbers.add(number)
        truth = self.answers[number]
        if not truth.in_fractions or not row.get("media"):  # a row that failed has no media, and no boxes to compare
            return truth.answer
        return scale_boxes(truth.answer, self.root, row["media"][index])

    def add_picture(self, truth: Any, more: Any, index: int) -> Any:
        """The truth of a row with that of one more picture. Its objects name the picture, from 1."""
        if more is None:
            return truth
        members = {part.name: part.get_member("image") for part in self.root.members if part.is_list}
        merged = dict(truth or {})
        for name, elements in more.items():
            if name in members and isinstance(elements, list):
                number = {members[name]: index + 1} if members[name] else {}
                merged[name] = [*merged.get(name, ()), *({**element, **number} for element in elements)]
        return merged

    def knows(self, row_id: str) -> bool:
        return self.by_name.get(row_id) is not None

    def count_unused(self) -> int:
        return len(self.answers) - len(self.used_numbers)

    def compute_hash(self) -> str:
        """Of the truths that were found."""
        text = json.dumps(sorted(self.used.items()), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def scale_boxes(answer: Mapping[str, Any], root: ComparedField, medium: Mapping[str, Any]) -> dict[str, Any]:
    """An answer whose boxes are fractions, in pixels of the original."""
    sides = medium["width"] or 0, medium["height"] or 0
    names = {part.name: part.get_member("box") for part in root.members if part.kind == "boxes"}

    def scale(element: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {**element, name: [number * sides[place % 2] for place, number in enumerate(element[name])]}

    return {
        key: [scale(element, name) for element in value] if (name := names.get(key)) else value
        for key, value in answer.items()
    }


def list_row_names(row: Mapping[str, Any]) -> list[str]:
    """The names under which a truth may know a row: its id, then its first file, here and in exports."""
    names = list_picture_names(row, 0) if row.get("media") else []
    return [row["id"], *names]


def list_picture_names(row: Mapping[str, Any], index: int) -> list[str]:
    uri = row["media"][index]["uri"] or ""
    return [*(list_file_names(uri.partition("#")[0]) if uri else ()), name_medium(row["id"], index)]


def open_truth(
    where: str, id_column: str, root: ComparedField, kept_columns: list[str], format_name: str | None = None
) -> TruthIndex:
    """`format_name` is one of TRUTHS; without it, the file tells."""
    if where in kept_columns:
        return TruthIndex(where, root, column=where)
    file = TruthFile(where, id_column, root)
    names = [format_name] if format_name else TRUTHS
    readers: list[type[TruthReader]] = [load_registered(TRUTHS, name, "--from") for name in names]
    reader = next((each for each in readers if each.can_read(file)), None)
    if reader is None:
        kept = f"a kept column of the output ({', '.join(kept_columns)})" if kept_columns else "a kept column"
        known = ", ".join(each.description for each in readers)
        raise OutputError(f"--truth {where} is neither {kept} nor {known}")
    return build_index(where, root, list(reader(file).read()), is_about_pictures=reader.is_about_pictures)


def build_index(
    where: str, root: ComparedField, given: list[TrueAnswer], *, is_about_pictures: bool = False
) -> TruthIndex:
    answers = [truth for truth in given if truth.names]
    by_name: dict[str, int | None] = {}
    first_names = Counter(truth.names[0] for truth in answers)
    if repeated := [name for name, count in first_names.items() if count > 1]:
        raise OutputError(f"--truth {where} has two truths for {repeated[0]!r}")
    for number, truth in enumerate(answers):
        for name in truth.names[1:]:
            by_name[name] = None if name in by_name else number
    by_name |= {truth.names[0]: number for number, truth in enumerate(answers)}
    return TruthIndex(where, root, answers=answers, by_name=by_name, is_about_pictures=is_about_pictures)
