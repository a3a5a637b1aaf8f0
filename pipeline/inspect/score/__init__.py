"""Measures how good the answers of an output are, against a truth for all or some of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import OutputError
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.progress_bar import show_progress
from pipeline.inspect.score.box_matching import BoxRanking
from pipeline.inspect.score.confidence_quality import ConfidenceQuality, measure_confidence
from pipeline.inspect.score.intervals import Estimate, Z, compute_wilson_interval, estimate_ratios, resample_rows
from pipeline.inspect.score.population import PopulationEstimate
from pipeline.inspect.score.row_marks import ERROR_MEASURES
from pipeline.inspect.score.scored_rows import ScoredRows, list_kept_columns, read_scored_rows
from pipeline.registry import SCHEMAS
from pipeline.schema.json_schema import SchemaNode
from pipeline.schema.schema_loader import load_annotated_schema
from pipeline.truth.compared_fields import build_compared_fields
from pipeline.truth.truth_index import TruthIndex, open_truth

MAX_WRONG_IDS = 100  # listed for each field
PRECISION_RESAMPLINGS = 200  # of the average precision, which takes longer than other measures


@dataclass
class FieldScore:
    rows: int  # that have a truth for the field
    measures: dict[str, Estimate | None]
    classes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    confusion: list[tuple[str, str, int]] = field(default_factory=list)  # (truth, answer, count), commonest first
    wrong: list[str] = field(default_factory=list)  # ids of rows
    confidence: ConfidenceQuality | None = None  # None where the answers have none


@dataclass
class OutputScore:
    """The field names are the keys of `score --json`."""

    output: str
    question: str
    truth: str
    truth_hash: str
    time: str  # when it was measured, in UTC: the newest score of a question calibrates its confidences
    rows: int  # that were compared
    failed: int  # of these, the rows without an answer
    unlabelled: int  # answered rows without a truth
    unused: int  # truths without a row
    fields: dict[str, FieldScore]  # by path
    estimates: dict[str, dict[str, PopulationEstimate]]  # of all answered rows, where only some have a truth


def score_output(
    path: str, where: str, *, question: str | None = None, id_column: str = "id", schema_spec: str | None = None
) -> OutputScore:
    """Also writes the score into the output."""
    reader = open_output_reader(path, question, shows_progress=True)
    score = measure_answers(reader, open_answer_truth(reader, where, id_column=id_column, schema_spec=schema_spec))
    reader.dataset.write_score(score.truth_hash, json.dumps(to_json_dict(score), indent=1))
    return score


def measure_answers(reader: OutputReader, truth: TruthIndex) -> OutputScore:
    scored = read_scored_rows(reader, truth)
    path, where = reader.dataset.store.path, truth.where
    if truth.column is None and not truth.answers:
        raise OutputError(f"--truth {where}: no row of it has a true answer yet; fill in its column `truth`")
    if not scored.marks:
        raise OutputError(f"--truth {where}: none of its rows is in {path}. Rows are found by their ids (--truth-id)")
    return OutputScore(
        output=path,
        question=reader.dataset.fingerprint,
        truth=where,
        truth_hash=truth.compute_hash(),
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        rows=len(scored.marks),
        failed=scored.failed,
        unlabelled=scored.unlabelled,
        unused=truth.count_unused(),
        fields=score_fields(scored),
        estimates=scored.population.estimate(),
    )


def open_answer_truth(
    reader: OutputReader, where: str, *, id_column: str = "id", schema_spec: str | None = None
) -> TruthIndex:
    return open_truth(
        where, id_column, build_compared_fields(find_schema(reader, schema_spec)), list_kept_columns(reader)
    )


def find_schema(reader: OutputReader, spec: str | None) -> SchemaNode | None:
    """The schema with its comparators. An output does not choose which code runs here: a user's own schema must be
    named, and without it the question has the schema without comparators."""
    named = reader.job.get("answer", {}).get("schema")
    if spec or named in SCHEMAS:
        return load_annotated_schema(spec or named, base_folder=Path.cwd())
    text = reader.question.get("answer", {}).get("schema")
    return json.loads(text.rpartition("\n")[2]) if text else None


def score_fields(scored: ScoredRows) -> dict[str, FieldScore]:
    rows = list(scored.marks.values())
    names = list(dict.fromkeys((path, measure) for row in rows for path in row.sums for measure in row.sums[path]))
    shares = np.array([[row.sums.get(path, {}).get(measure, (0.0, 0.0)) for path, measure in names] for row in rows])
    are_shares = [measure not in ERROR_MEASURES for _, measure in names]
    estimates = dict(zip(names, estimate_ratios(shares[..., 0], shares[..., 1], are_shares), strict=True))
    for path, ranking in scored.rankings.items():
        estimates |= {(path, name): estimate for name, estimate in estimate_precision(ranking, len(rows)).items()}
    return {path: score_field(path, estimates, scored) for path in dict.fromkeys(path for path, _ in estimates)}


def score_field(path: str, estimates: Mapping[tuple[str, str], Estimate | None], scored: ScoredRows) -> FieldScore:
    judged = {row_id: row.is_right(path) for row_id, row in scored.marks.items()}
    pairs = Counter(pair for row in scored.marks.values() for pair in row.choices.get(path, ()))
    score = FieldScore(
        rows=sum(is_right is not None for is_right in judged.values()),
        measures={measure: estimate for (each, measure), estimate in estimates.items() if each == path},
        classes=score_choices(pairs) if pairs else score_classes(path, scored),
        confusion=[(*pair, count) for pair, count in pairs.most_common()],
        confidence=measure_confidence([row.judged.get(path, ()) for row in scored.marks.values()]),
        wrong=list(islice((row_id for row_id, is_right in judged.items() if is_right is False), MAX_WRONG_IDS)),
    )
    if pairs:
        known = [each["F1"] for each in score.classes.values() if each["F1"] is not None]
        mean = float(np.mean(known))
        score.measures["mean F1"] = Estimate(mean, None, None)
    return score


def score_choices(pairs: Mapping[tuple[str, str], int]) -> dict[str, dict[str, float | None]]:
    names = sorted({name for pair in pairs for name in pair})
    return {
        name: describe_class(
            pairs.get((name, name), 0),
            sum(count for (_, answer), count in pairs.items() if answer == name),
            sum(count for (truth, _), count in pairs.items() if truth == name),
        )
        for name in names
    }


def score_classes(path: str, scored: ScoredRows) -> dict[str, dict[str, float | None]]:
    sums: dict[str, list[float]] = {}
    for row in scored.marks.values():
        for label, counts in row.classes.get(path, {}).items():
            sums[label] = [total + count for total, count in zip(sums.get(label, (0, 0, 0)), counts, strict=True)]
    if set(sums) <= {""}:
        return {}
    classes = {label: describe_class(*counts) for label, counts in sorted(sums.items())}
    if ranking := scored.rankings.get(path):
        for label, described in classes.items():
            precision = ranking.compute_class(label)
            described |= {"AP50": precision.ap50, "AP50:95": precision.ap}
    return classes


def describe_class(hits: float, answered: float, true: float) -> dict[str, float | None]:
    return {
        "F1": 2 * hits / (answered + true) if answered + true else None,
        "precision": hits / answered if answered else None,
        "recall": hits / true if true else None,
        "answered": answered,
        "true": true,
    }


def estimate_precision(ranking: BoxRanking, row_count: int) -> dict[str, Estimate | None]:
    """Resampled pictures repeat, which raises their precision, so only the spread of the resampled values is used."""
    resamplings = show_progress(resample_rows(row_count, PRECISION_RESAMPLINGS), "intervals", PRECISION_RESAMPLINGS)
    drawn = [ranking.compute(weights) for weights in resamplings]
    estimates: dict[str, Estimate | None] = {}
    for name, value, *resampled in zip(("AP50", "AP50:95", "AR"), ranking.compute(), *drawn, strict=True):
        spread = Z * float(np.std([each for each in resampled if each is not None] or [0.0]))
        if value is None:
            estimates[name] = None
        elif spread < 1e-9:  # without a mistake, resampling finds no doubt
            estimates[name] = Estimate(value, *compute_wilson_interval(value, row_count))
        else:
            estimates[name] = Estimate(value, max(0.0, value - spread), min(1.0, value + spread))
    return estimates


def to_json_dict(score: OutputScore) -> dict[str, Any]:
    values = asdict(score)
    for path, scored in score.fields.items():
        values["fields"][path]["measures"] = {
            measure: estimate._asdict() if estimate else None for measure, estimate in scored.measures.items()
        }
        values["fields"][path]["confidence"] = scored.confidence._asdict() if scored.confidence else None
    values["estimates"] = {
        path: {
            figure: {"answered": each.answered, "sample": each.sample._asdict(), "estimate": each.estimate._asdict()}
            for figure, each in figures.items()
        }
        for path, figures in score.estimates.items()
    }
    return values
