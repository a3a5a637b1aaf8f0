"""Reads an output row by row and marks the rows that have a truth.

A row that failed is marked as an empty answer: its values are missing, and a measure that left it out would be better
than the labels are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.inspect.output_reader import OutputReader
from pipeline.inspect.score.box_matching import BoxRanking
from pipeline.inspect.score.population import Figures, Population, describe_answer
from pipeline.inspect.score.row_marks import RIGHT, RowMarker, RowMarks, mark_row
from pipeline.output.answer.confidence import list_confidences
from pipeline.output.arrow_tables import COLUMN_DESCRIPTIONS
from pipeline.output.thread_map import map_in_threads
from pipeline.truth.compared_fields import ComparedField
from pipeline.truth.truth_index import TruthIndex

ANSWER_COLUMNS = ["id", "text", "answer", "media", "confidence", "logprob", "run"]


@dataclass
class ScoredRows:
    root: ComparedField
    marks: dict[str, RowMarks] = field(default_factory=dict)  # by the id of the row
    rankings: dict[str, BoxRanking] = field(default_factory=dict)  # by the path of a list of boxes
    population: Population = field(default_factory=Population)
    failed: int = 0  # of the marked rows
    unlabelled: int = 0  # answered rows without truth


def list_kept_columns(reader: OutputReader) -> list[str]:
    part = next(iter(reader.parts), None)
    names = reader.dataset.read_part(part, None).schema.names if part else []
    return [name for name in names if name not in COLUMN_DESCRIPTIONS]


def read_scored_rows(reader: OutputReader, truth: TruthIndex) -> ScoredRows:
    scored = ScoredRows(truth.root)
    found: dict[str, dict[str, Any]] = {}  # the newest answer of each row with a truth
    unlabelled = set()
    for row in read_answered_rows(reader, [truth.column] if truth.column else []):
        if truth.find(row) is None:
            if row["id"] not in unlabelled:
                unlabelled.add(row["id"])
                scored.population.add_rest(describe_answered_row(row, truth.root))
        elif row["id"] not in found or found[row["id"]]["run"] < row["run"]:
            found[row["id"]] = row
    for row in read_failed_rows(reader, truth.column):
        if row["id"] not in found and truth.find(row) is not None:
            found[row["id"]] = row
            scored.failed += 1
    scored.unlabelled = len(unlabelled)
    if found and are_vectors(reader):
        from pipeline.inspect.score.vector_marks import mark_vectors  # it needs torch

        scored.marks = mark_vectors(reader, {row_id: truth.used[row_id] for row_id in found})
        return scored
    rows = sorted(found.items())
    for number, (row_id, row) in enumerate(reader.track(rows, "marks", len(rows))):
        marker = RowMarker(number, compute_diagonal(row), find_confidence(row), scored.rankings)
        marker.take_confidences(row["answer"], row["confidence"])
        answer = get_answer(row, truth.root)
        marks = mark_row(truth.root, row_id, answer, truth.used[row_id], marker, row["confidence"])
        scored.marks[row_id] = marks
        if row["run"] is not None:
            is_right = {(truth.root.path, RIGHT): float(bool(marks.is_right(truth.root.path)))}
            true_figures = describe_answer(truth.root, truth.used[row_id]) | is_right
            scored.population.add_pair(true_figures, describe_answered_row(row, truth.root))
    return scored


def are_vectors(reader: OutputReader) -> bool:
    return reader.job.get("answer", {}).get("embedding") is not None


def get_answer(row: Mapping[str, Any], root: ComparedField) -> Any:
    """The text of a model without a schema. With one, a choice that is the whole answer is quoted in the text."""
    answer = row.get("answer")
    return answer if root.kind == "object" or answer is not None else row["text"]


def describe_answered_row(row: Mapping[str, Any], root: ComparedField) -> Figures:
    """The confidence of an answer stands for the chance that it is right."""
    return describe_answer(root, get_answer(row, root)) | {(root.path, RIGHT): find_confidence(row)}


def find_confidence(row: Mapping[str, Any]) -> float:
    """Of the least sure value, or the mean of the tokens, if an earlier version answered. 1 where nothing is known."""
    least = min(list_confidences(row["confidence"], row.get("answer")), default=None)
    return math.exp(row["logprob"] or 0) if least is None else least


def read_answered_rows(reader: OutputReader, more_columns: list[str]) -> Iterator[dict[str, Any]]:
    def read_part(part: str) -> pa.Table:
        return reader.dataset.read_part(part, [*ANSWER_COLUMNS, *more_columns])

    tables = map_in_threads(read_part, reader.parts)
    for table in reader.track(tables, "answers", len(reader.parts)):
        for row in table.to_pylist(maps_as_pydicts="lossy"):
            yield {"answer": None, "confidence": None, **row}


def read_failed_rows(reader: OutputReader, truth_column: str | None) -> Iterator[dict[str, Any]]:
    """Failed rows in the shape of answered ones."""
    ids = {letter.id for letter in reader.read_failed_rows(may_repeat_rows=reader.may_repeat_rows)}
    kept: dict[str, dict[str, Any]] = {row_id: {} for row_id in ids}
    for name in reader.dataset.list_dead_letters() if truth_column and ids else ():
        rows = reader.dataset.read_dead_letters(name, ["id", truth_column or ""]).to_pylist()
        kept |= {row["id"]: row for row in rows if row["id"] in ids}
    for row_id, row in kept.items():
        yield {**row, **dict.fromkeys(ANSWER_COLUMNS), "id": row_id}


def compute_diagonal(row: Mapping[str, Any]) -> float:
    first = next(iter(row["media"] or ()), None)
    return math.hypot(first["width"] or 0, first["height"] or 0) if first else 0.0
