"""Builds the values that the page template draws: tiles, charts and cards. It only computes numbers and texts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.inspect.figures import count_by_bin, sum_weighted
from pipeline.inspect.output_reader import OutputReader
from pipeline.inspect.report.drawn_media import AnnotatedMedia, Palette, annotate_media
from pipeline.inspect.report.previews import MediaPreview
from pipeline.inspect.report.reliability import build_reliability_diagrams
from pipeline.inspect.report.statistics import (
    LATENCY_BINS_PER_DECADE,
    AnswerStatistics,
    SampledRow,
    to_percent,
)
from pipeline.inspect.report.truth_marks import OtherAnswer, TruthMarks, build_confusion_matrices
from pipeline.inspect.score import OutputScore
from pipeline.inspect.score.score_text import list_score_cells
from pipeline.inspect.status import format_run_duration, format_run_time, format_versions
from pipeline.output.answer.annotations import find_annotations
from pipeline.output.answer.confidence import list_confidences
from pipeline.output.arrow_tables import RESERVED_COLUMNS
from pipeline.output.failure_counts import FailureGroup

BAR_WIDTH, BIN_COUNT = 150, 8
MIN_WIDE_VALUES = 9  # an answer with more values needs the room beside the image
MAX_LISTED_NUMBERS = 12  # of a vector
REASON_LABELS = {"chosen": "chosen", "doubtful": "least confident", "random": "random", "newest": "new"}
STEP_LABELS = {"worked": "answering", "waited": "waiting", "read": "reading rows"}
STEP_LABELS |= {"fetch": "fetching", "decode": "decoding", "prompt": "prompts", "commit": "committing"}


@dataclass(frozen=True, slots=True)
class Card:
    """An answered row on the page."""

    id: str
    reason: str
    reason_label: str
    answer: Any
    kept: Mapping[str, Any]
    media: Sequence[AnnotatedMedia]
    differences: Sequence[str]  # from the truth
    disagreements: Sequence[str]  # with the answer to another question
    other_answer: Any  # None where both agree
    violations: Sequence[str]
    facts: Sequence[str]
    model_text: str  # what the model wrote, if it differs from the answer
    is_wide: bool
    tags: str  # words that the filter looks for


def needs_wide_card(row: Mapping[str, Any]) -> bool:
    has_video = any(media_info["kind"] == "video" for media_info in row["media"] or ())
    return has_video or count_values(get_answer_or_text(row)) > MIN_WIDE_VALUES


def get_answer_or_text(row: Mapping[str, Any]) -> Any:
    return row.get("answer") if row.get("answer") is not None else row["text"]


def count_values(answer: Any) -> int:
    """How many values there are to read; a list of numbers counts as one."""
    if isinstance(answer, Mapping):
        return sum(count_values(value) for value in answer.values())
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        if any(isinstance(element, (str, Mapping)) for element in answer):
            return sum(count_values(element) for element in answer)
        return 1
    return answer is not None


def build_card(
    sampled_row: SampledRow,
    field_meanings: Mapping[str, str],
    load_preview: Callable[[Mapping[str, Any]], MediaPreview],
    palette: Palette,
    *,
    wide: bool,
    truth_marks: TruthMarks | None = None,
    other: OtherAnswer | None = None,
) -> Card:
    row = sampled_row.row
    answer = get_answer_or_text(row)
    annotations = truth_marks.annotations if truth_marks else find_annotations(row.get("answer"), field_meanings)
    differences = truth_marks.differences if truth_marks else ()
    media = []
    for index, media_info in enumerate(row["media"] or ()):
        of_this_media = [annotation for annotation in annotations if annotation.media_index == index]
        media.append(annotate_media(load_preview(media_info), of_this_media, palette, wide=wide))
    tags = ["marks"] * bool(annotations) + ["doubts"] * bool(row["violations"] or row["flags"])
    tags += ["wrong"] * bool(differences) + ["disagree"] * bool(other and other.disagreements)
    return Card(
        id=row["id"],
        reason=sampled_row.reason,
        reason_label=REASON_LABELS[sampled_row.reason],
        answer=answer,
        kept={name: shorten_vector(value) for name, value in row.items() if name not in RESERVED_COLUMNS},
        media=media,
        differences=differences,
        disagreements=other.disagreements if other else (),
        other_answer=other.answer if other and other.disagreements else None,
        violations=row["violations"] or (),
        facts=list_facts(row),
        model_text=row["raw"] or (row["text"] if answer is not row["text"] else ""),
        is_wide=wide,
        tags=" ".join(tags),
    )


def shorten_vector(value: Any) -> Any:
    """
    >>> shorten_vector([0.25] * 256), shorten_vector([0.1, 0.2])
    ('256 numbers: 0.25, 0.25, 0.25, 0.25, ...', [0.1, 0.2])
    """
    if not isinstance(value, list) or len(value) <= MAX_LISTED_NUMBERS or not isinstance(value[0], float):
        return value
    return f"{len(value):,} numbers: {', '.join(f'{number:.3g}' for number in value[:4])}, ..."


def list_facts(row: Mapping[str, Any]) -> list[str]:
    """The small print under an answer."""
    tokens = row["tokens"]
    facts = [f"{tokens['vision']:,} vision tokens", f"{tokens['output']:,} output tokens", row["finish"]]
    if row["logprob"] is not None:
        facts.append(f"confidence {to_percent(row['logprob'])} %")
    least = min(list_confidences(row.get("confidence"), row.get("answer")), default=None)
    if least is not None:
        facts.append(f"least sure value {least:.0%}")
    if row.get("latency_s") is not None:
        facts.append(f"{row['latency_s']:.3g} s")
    if row["attempts"] > 1:
        facts.append(f"{row['attempts']} attempts")
    return [*facts, *(row["flags"] or ())]


def build_page_values(
    reader: OutputReader,
    statistics: AnswerStatistics,
    failure_groups: Sequence[FailureGroup],
    cards: Sequence[Card],
    score: OutputScore | None = None,
) -> dict[str, Any]:
    fields = score.fields if score else {}
    parts_note = f"The figures come from {statistics.parts_read:,} of {statistics.parts:,} parts, evenly spread."
    return {
        "name": reader.job.get("name", "answers"),
        "path": reader.dataset.store.path,
        "fingerprint": reader.dataset.fingerprint,
        "model": reader.job.get("model", {}).get("weights", ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "statistics": statistics,
        "tiles": build_tiles(statistics, failure_groups, reader.run_reports),
        "charts": build_charts(statistics, failure_groups, reader.run_reports),
        "note": "" if statistics.parts_read == statistics.parts else parts_note,
        "filters": list_filters(cards),
        "scores": list(list_score_cells(fields)),
        "confusion_matrices": list(build_confusion_matrices(fields)),
        "reliability_diagrams": list(build_reliability_diagrams(fields)),
        "cards": cards,
        "failure_groups": failure_groups,
        "runs": [build_run_row(report) for report in reader.run_reports],
        "question": json.dumps(reader.question, indent=2, ensure_ascii=False),
    }


def build_tiles(
    statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], run_reports: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    counts = {
        "answered": statistics.rows,
        "in errors/": sum(group.count for group in failure_groups),
        "vision tokens": sum_weighted(statistics.vision_tokens),
        "output tokens": sum_weighted(statistics.output_tokens),
        "cut off": statistics.finish_reasons["length"],
        "with violations": statistics.rows_with_violations,
        "flags": statistics.flags.total(),
    }
    if discarded := sum(report.get("discarded_tokens", {}).get("output", 0) for report in run_reports):
        counts["output tokens of unusable replies"] = discarded
    cost = sum(report.get("cost") or 0.0 for report in run_reports)
    return [(name, f"{count:,}") for name, count in counts.items()] + ([("cost", f"{cost:,.4g}")] if cost else [])


def build_charts(
    statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], run_reports: Sequence[Mapping[str, Any]]
) -> dict[str, list[ChartBar]]:
    seconds: Counter[str] = Counter()
    for report in run_reports:
        worker_seconds = report.get("workers_seconds", {})
        seconds.update({STEP_LABELS[step]: value for step, value in worker_seconds.items() if step in STEP_LABELS})
    return {
        "vision": build_histogram(statistics.vision_tokens),
        "output": build_histogram(statistics.output_tokens),
        "confidence": build_histogram(statistics.confidence_percents, " %"),
        "latency": build_latency_histogram(statistics.latency_bins),
        "seconds": build_bars({step: value for step, value in seconds.items() if value >= 0.05}, "{:,.1f} s"),
        "errors": build_bars({group.name: group.count for group in failure_groups}),
    }


def list_filters(cards: Iterable[Card]) -> list[tuple[str, str, int]]:
    """The filters that match a card: key, label and how many cards."""
    counts = Counter(key for card in cards for key in ("all", card.reason, *card.tags.split()))
    labels = {"all": "all", **REASON_LABELS, "marks": "with places or times", "doubts": "with doubts"}
    labels |= {"wrong": "differ from the truth", "disagree": "differ from the other answer"}
    return [(key, label, counts[key]) for key, label in labels.items() if counts[key] or key == "all"]


def build_run_row(report: Mapping[str, Any]) -> dict[str, Any]:
    done_rows, seconds = report["answered"] + report["failed"], report["seconds"]
    return {
        **report,
        "run": format_run_time(report["run"]),
        "duration": format_run_duration(report),
        "rate": f"{done_rows / seconds:.1f}" if seconds else "",
        "versions": format_versions(report),
    }


@dataclass(frozen=True, slots=True)
class ChartBar:
    label: str
    width: float
    value: str


def build_bars(counts: Mapping[str, float], value_format: str = "{:,.0f}") -> list[ChartBar]:
    longest = max(counts.values(), default=0) or 1
    return [
        ChartBar(label, round(BAR_WIDTH * count / longest, 1), value_format.format(count))
        for label, count in counts.items()
    ]


def build_histogram(counts: Counter[int], unit: str = "") -> list[ChartBar]:
    bars = {}
    for first, last, count in count_by_bin(counts, BIN_COUNT) if counts else ():
        bars[f"{first:,}{unit}" if first == last else f"{first:,} to {last:,}{unit}"] = float(count)
    return build_bars(bars)


def build_latency_histogram(counts: Counter[int]) -> list[ChartBar]:
    """A histogram of latencies with equal steps of the logarithm.

    >>> [(bar.label, bar.value) for bar in build_latency_histogram(Counter({40: 3, 46: 1, 60: 1}))]
    [('0.1 to 0.141 s', '3'), ('0.141 to 0.2 s', '0'), ('0.2 to 0.282 s', '1'), ('0.282 to 0.398 s', '0'), \
('0.398 to 0.562 s', '0'), ('0.562 to 0.794 s', '0'), ('0.794 to 1.12 s', '1')]
    """
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / BIN_COUNT)
    bins = [sum(counts[n] for n in range(first, first + width)) for first in range(low, high + 1, width)]
    edges = [f"{10 ** ((low + n * width) / LATENCY_BINS_PER_DECADE) / 1000:.3g}" for n in range(len(bins) + 1)]
    return build_bars({f"{edges[n]} to {edges[n + 1]} s": float(count) for n, count in enumerate(bins)})
