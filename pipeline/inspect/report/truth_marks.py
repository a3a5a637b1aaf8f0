"""Compares an answer on the page with its truth: which values differ, which places were missed or invented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.inspect.score import FieldScore
from pipeline.inspect.score.comparators import to_list, to_text
from pipeline.inspect.score.place_matching import group_elements
from pipeline.inspect.score.row_marks import RowMarker, RowMarks, mark_row
from pipeline.inspect.score.scored_rows import compute_diagonal, get_answer
from pipeline.json_values import parse_json_text
from pipeline.output.answer.annotations import Annotation, find_annotations
from pipeline.truth.compared_fields import ComparedField

MAX_CONFUSED = 12  # values of a choice in a matrix, the commonest


@dataclass(frozen=True)
class TruthMarks:
    differences: Sequence[str]  # in words
    annotations: Sequence[Annotation]  # of the answer and of what it missed


@dataclass(frozen=True)
class OtherAnswer:
    """To another question about the same row."""

    answer: Any
    disagreements: Sequence[str]  # in words


@dataclass(frozen=True)
class ConfusionMatrix:
    path: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]  # by truth and answer


def mark_differences(
    row: Mapping[str, Any], truth: Any, root: ComparedField, field_meanings: Mapping[str, str]
) -> TruthMarks:
    answer = get_answer(row, root)
    marker = RowMarker(0, compute_diagonal(row), 1.0, {})
    marks = mark_row(root, row["id"], answer, truth, marker)
    annotations = find_annotations(answer, field_meanings)
    places = [part for part in root.members if part.is_list and part.kind != "items" and part.name in truth]
    for part in places:
        missed, spurious = find_unmatched(part, answer.get(part.name), truth[part.name], marker)
        invented = set(find_annotations({part.name: spurious}, field_meanings))
        annotations = [replace(each, verdict="spurious") if each in invented else each for each in annotations]
        missing = find_annotations({part.name: missed}, field_meanings)
        annotations += [replace(each, verdict="missed") for each in missing]
    return TruthMarks(list(describe_differences(root, truth, marks)), annotations)


def find_unmatched(compared: ComparedField, answered: Any, true: Any, marker: RowMarker) -> tuple[list[Any], list[Any]]:
    """The missed and the spurious elements. Crowds are not missed."""
    missed, spurious = [], []
    for group in group_elements(compared, to_list(answered), to_list(true)):
        found = [pair for pair in marker.pair_group(compared, group)[0] if pair.is_found]
        found_ids = {id(element) for pair in found for element in (pair.answered, pair.true)}
        missed += [each for each in group.true if id(each) not in found_ids and not each.get("iscrowd")]
        spurious += [each for each in group.answered if id(each) not in found_ids]
    return missed, spurious


def compare_answers(row: Mapping[str, Any], other_row: Mapping[str, Any], root: ComparedField) -> OtherAnswer:
    other = get_answer(other_row, root)
    marks = mark_row(root, row["id"], get_answer(row, root), other, RowMarker(0, compute_diagonal(row), 1.0, {}))
    return OtherAnswer(other, list(describe_differences(root, other, marks, "the other answer")))


def describe_differences(
    compared: ComparedField, truth: Any, marks: RowMarks, subject: str = "the truth"
) -> Iterator[str]:
    """A sentence for each value that is not right."""
    truth = parse_json_text(truth)
    if compared.kind != "object":
        if marks.is_right(compared.path) is False:
            yield f"{compared.path}: {subject} is {to_text(truth) or 'null'}"
        return
    for part in compared.members:
        if truth is None or part.name in truth:
            yield from describe_differences(part, None if truth is None else truth[part.name], marks, subject)


def build_confusion_matrices(fields: Mapping[str, FieldScore]) -> Iterator[ConfusionMatrix]:
    """Of the choices that were confused at all."""
    for path, field in fields.items():
        if any(truth != answer for truth, answer, _ in field.confusion):
            counts = {(truth, answer): count for truth, answer, count in field.confusion}
            names = list(dict.fromkeys(name for pair in counts for name in pair))[:MAX_CONFUSED]
            table = [[counts.get((truth, answer), 0) for answer in names] for truth in names]
            yield ConfusionMatrix(path, [name or "null" for name in names], table)
