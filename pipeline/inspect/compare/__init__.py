"""Compares the answers to two questions of one output, row by row: two prompts, models or settings.

Without a truth, it tells where they agree. With one, it tells which is better, and whether that may be chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import OutputError
from pipeline.inspect.compare.paired_tests import MeasureDifference, compare_measures
from pipeline.inspect.compare.question_costs import QuestionCost, compute_question_cost
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.score import find_schema, open_answer_truth
from pipeline.inspect.score.intervals import Estimate, compute_wilson_interval
from pipeline.inspect.score.row_marks import RIGHT, RowMarker, mark_row
from pipeline.inspect.score.scored_rows import (
    are_vectors,
    compute_diagonal,
    get_answer,
    read_answered_rows,
    read_scored_rows,
)
from pipeline.output.dataset import list_runs, read_run_document
from pipeline.run.preflight import list_differences
from pipeline.truth.compared_fields import WHOLE_ANSWER, ComparedField, build_compared_fields

MAX_LISTED_IDS = 10_000  # of the rows in which a field differs


@dataclass
class FieldAgreement:
    rows: int = 0
    agreeing: int = 0
    differing: list[str] = field(default_factory=list)  # ids of rows

    @property
    def share(self) -> Estimate:
        share = self.agreeing / self.rows
        return Estimate(share, *compute_wilson_interval(share, self.rows))


@dataclass
class QuestionComparison:
    """The field names are the keys of `compare --json`."""

    output: str
    questions: tuple[str, str]
    differences: list[str]  # of the questions
    rows: int  # that both answered
    agreement: dict[str, FieldAgreement]  # by path
    truth: str | None
    truth_rows: int  # that both answered or failed, and that have a truth
    measures: dict[str, dict[str, MeasureDifference]]  # by path and measure
    costs: tuple[QuestionCost, QuestionCost]


@dataclass(frozen=True)
class ComparisonOptions:
    questions: tuple[str, ...] = ()  # none: those asked last
    truth: str | None = None
    id_column: str = "id"
    schema_spec: str | None = None
    price_per_hour: float | None = None  # of a worker that generates


def compare_questions(path: str, options: ComparisonOptions) -> QuestionComparison:
    questions = options.questions or list_newest_questions(path)
    readers = [open_output_reader(path, question, shows_progress=True) for question in questions]
    roots = [build_compared_fields(find_schema(reader, options.schema_spec)) for reader in readers]
    if are_vectors(readers[0]) != are_vectors(readers[1]):
        raise OutputError("the answers to one of the two questions are vectors")
    if are_vectors(readers[0]):
        rows, agreement = read_nearest_agreement(readers)
    else:
        rows, agreement = read_agreement(readers, find_common_fields(*roots))
    measures, truth_rows = compare_with_truth(readers, options) if options.truth else ({}, 0)
    right = measures.get(WHOLE_ANSWER, {}).get(RIGHT)
    shares = (right.first, right.second) if right else (None, None)
    costs = [
        compute_question_cost(reader, share, options.price_per_hour)
        for reader, share in zip(readers, shares, strict=True)
    ]
    return QuestionComparison(
        output=readers[0].dataset.store.path,
        questions=(readers[0].dataset.fingerprint, readers[1].dataset.fingerprint),
        differences=list(list_differences(readers[0].question, readers[1].question)),
        rows=rows,
        agreement=agreement,
        truth=options.truth,
        truth_rows=truth_rows,
        measures=measures,
        costs=(costs[0], costs[1]),
    )


def list_newest_questions(path: str) -> tuple[str, ...]:
    """The two questions that were asked last, the older one first."""
    store = open_output_reader(path).dataset.store
    runs = (read_run_document(store, run_id, "plan") for run_id in list_runs(store, "plan"))
    questions = list(dict.fromkeys(run["fingerprint"] for run in runs))
    if len(questions) < 2:
        raise OutputError(f"{path} has one question; run the job with another prompt and --on-change add, then compare")
    return questions[1], questions[0]


def find_common_fields(one: ComparedField, other: ComparedField) -> ComparedField:
    """Another prompt may come with another schema: fields that are the same in both are compared."""
    members = tuple(part for part in one.members if part in other.members)
    if one.kind != other.kind or (one.members and not members):
        raise OutputError("the answers to the two questions have no field in common")
    return replace(one, members=members)


def read_agreement(readers: list[OutputReader], root: ComparedField) -> tuple[int, dict[str, FieldAgreement]]:
    first_answers = {row["id"]: get_answer(row, root) for row in read_answered_rows(readers[0], [])}
    agreement: dict[str, FieldAgreement] = {}
    rows = 0
    for row in read_answered_rows(readers[1], []):
        if row["id"] not in first_answers:
            continue
        rows += 1
        first = first_answers.pop(row["id"])
        marks = mark_row(root, row["id"], get_answer(row, root), first, RowMarker(0, compute_diagonal(row), 1.0, {}))
        for path in marks.sums:
            if (is_same := marks.is_right(path)) is not None:
                add_agreement(agreement.setdefault(path, FieldAgreement()), row["id"], is_same)
    if not rows:
        raise OutputError("no row was answered to both questions")
    for each in agreement.values():
        each.differing.sort()
    return rows, agreement


def read_nearest_agreement(readers: list[OutputReader]) -> tuple[int, dict[str, FieldAgreement]]:
    """Of vectors: whether the nearest row is the same."""
    from pipeline.inspect.score.vector_marks import choose_queries, find_nearest_ids  # it needs torch

    first_ids, second_ids = ({row["id"] for row in read_answered_rows(reader, [])} for reader in readers)
    common = dict.fromkeys(sorted(first_ids & second_ids))
    if not common:
        raise OutputError("no row was answered to both questions")
    agreement, queries = FieldAgreement(), choose_queries([*common])
    first, second = (find_nearest_ids(reader, common, queries, 1) for reader in readers)
    for row_id in queries:
        add_agreement(agreement, row_id, first.get(row_id) == second.get(row_id))
    return len(common), {"nearest row": agreement}


def add_agreement(agreement: FieldAgreement, row_id: str, is_same: bool) -> None:
    agreement.rows += 1
    agreement.agreeing += is_same
    if not is_same and len(agreement.differing) < MAX_LISTED_IDS:
        agreement.differing.append(row_id)


def compare_with_truth(
    readers: list[OutputReader], options: ComparisonOptions
) -> tuple[dict[str, dict[str, MeasureDifference]], int]:
    where = options.truth or ""
    truths = [
        open_answer_truth(reader, where, id_column=options.id_column, schema_spec=options.schema_spec)
        for reader in readers
    ]
    first, second = (read_scored_rows(*each) for each in zip(readers, truths, strict=True))
    ids = sorted(first.marks.keys() & second.marks.keys())
    if not ids:
        raise OutputError(f"--truth {where}: none of its rows was asked both questions")
    return compare_measures(first, second, ids), len(ids)


def to_json_dict(comparison: QuestionComparison) -> dict[str, Any]:
    agreement: Mapping[str, FieldAgreement] = comparison.agreement
    return {
        **asdict(comparison),
        "agreement": {path: asdict(each) | {"share": each.share._asdict()} for path, each in agreement.items()},
        "measures": {
            path: {name: each._asdict() | {"difference": each.difference._asdict()} for name, each in measures.items()}
            for path, measures in comparison.measures.items()
        },
    }
