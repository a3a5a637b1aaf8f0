"""Finds the truth of a row: in a column that the output kept, or in a file, by the row's id or the name of its file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import OutputError
from pipeline.registry import TRUTHS, import_object
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
    used: dict[str, Any] = field(default_factory=dict)  # the truths that were found, by the id of their row

    def find(self, row: Mapping[str, Any]) -> Any:
        """None for a row without truth."""
        if self.column:
            truth = read_truth_value(row[self.column], self.root, self.column)
        else:
            number = next(
                (self.by_name[name] for name in list_row_names(row) if self.by_name.get(name) is not None), None
            )
            truth = None if number is None else self.answers[number].answer
        if truth is not None:
            self.used[row["id"]] = truth
        return truth

    def compute_hash(self) -> str:
        """Of the truths that were found."""
        text = json.dumps(sorted(self.used.items()), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_row_names(row: Mapping[str, Any]) -> list[str]:
    """The names under which a truth may know a row: its id, then its first file."""
    uri = next((info["uri"] for info in row.get("media") or () if info["uri"]), "")
    return [row["id"], *list_file_names(uri.partition("#")[0])] if uri else [row["id"]]


def open_truth(where: str, id_column: str, root: ComparedField, kept_columns: list[str]) -> TruthIndex:
    if where in kept_columns:
        return TruthIndex(where, root, column=where)
    file = TruthFile(where, id_column, root)
    readers: list[type[TruthReader]] = [import_object(location) for location in TRUTHS.values()]
    reader = next((each for each in readers if each.can_read(file)), None)
    if reader is None:
        kept = f"a kept column of the output ({', '.join(kept_columns)})" if kept_columns else "a kept column"
        known = ", ".join(each.description for each in readers)
        raise OutputError(f"--truth {where} is neither {kept} nor {known}")
    return build_index(where, root, list(reader(file).read()))


def build_index(where: str, root: ComparedField, given: list[TrueAnswer]) -> TruthIndex:
    answers = [truth for truth in given if truth.names]
    by_name: dict[str, int | None] = {}
    first_names = Counter(truth.names[0] for truth in answers)
    if repeated := [name for name, count in first_names.items() if count > 1]:
        raise OutputError(f"--truth {where} has two truths for {repeated[0]!r}")
    for number, truth in enumerate(answers):
        for name in truth.names[1:]:
            by_name[name] = None if name in by_name else number
    by_name |= {truth.names[0]: number for number, truth in enumerate(answers)}
    return TruthIndex(where, root, answers=answers, by_name=by_name)
