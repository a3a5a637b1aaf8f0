"""Builds the values that the page template draws: tiles, charts and cards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.inspect.output_reader import OutputReader
from pipeline.inspect.report.annotations import find_annotations
from pipeline.inspect.report.charts import (
    AnnotatedMedia,
    ChartBar,
    Palette,
    annotate_media,
    build_bars,
    build_histogram,
    build_latency_histogram,
    count_values,
)
from pipeline.inspect.report.previews import MediaPreview
from pipeline.inspect.report.statistics import AnswerStatistics, FailureGroup, SampledRow, to_percent
from pipeline.inspect.status import format_run_time, format_versions
from pipeline.output.arrow_tables import RESERVED_COLUMNS
from pipeline.run.progress import format_duration

MIN_WIDE_VALUES = 9  # an answer with more values needs the room beside the image
REASON_LABELS = {"chosen": "chosen", "doubtful": "least confident", "random": "random"}
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


def build_card(
    sampled_row: SampledRow,
    field_meanings: Mapping[str, str],
    load_preview: Callable[[Mapping[str, Any]], MediaPreview],
    palette: Palette,
    *,
    wide: bool,
) -> Card:
    row = sampled_row.row
    answer = get_answer_or_text(row)
    annotations = find_annotations(row.get("answer"), field_meanings)
    media = []
    for index, media_info in enumerate(row["media"] or ()):
        of_this_media = [annotation for annotation in annotations if annotation.media_index == index]
        media.append(annotate_media(load_preview(media_info), of_this_media, palette, wide=wide))
    tags = ["marks"] * bool(annotations) + ["doubts"] * bool(row["violations"] or row["flags"])
    return Card(
        id=row["id"],
        reason=sampled_row.reason,
        reason_label=REASON_LABELS[sampled_row.reason],
        answer=answer,
        kept={name: value for name, value in row.items() if name not in RESERVED_COLUMNS},
        media=media,
        violations=row["violations"] or (),
        facts=list_facts(row),
        model_text=row["raw"] or (row["text"] if answer is not row["text"] else ""),
        is_wide=wide,
        tags=" ".join(tags),
    )


def list_facts(row: Mapping[str, Any]) -> list[str]:
    """The small print under an answer."""
    tokens = row["tokens"]
    facts = [f"{tokens['vision']:,} vision tokens", f"{tokens['output']:,} output tokens", row["finish"]]
    if row["logprob"] is not None:
        facts.append(f"confidence {to_percent(row['logprob'])} %")
    if row.get("latency_s") is not None:
        facts.append(f"{row['latency_s']:.3g} s")
    if row["attempts"] > 1:
        facts.append(f"{row['attempts']} attempts")
    return [*facts, *(row["flags"] or ())]


def build_page_values(
    reader: OutputReader, statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], cards: Sequence[Card]
) -> dict[str, Any]:
    return {
        "name": reader.job.get("name", "answers"),
        "path": reader.dataset.store.path,
        "fingerprint": reader.dataset.fingerprint,
        "model": reader.job.get("model", {}).get("weights", ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "statistics": statistics,
        "tiles": build_tiles(statistics, failure_groups, reader.run_reports),
        "charts": build_charts(statistics, failure_groups, reader.run_reports),
        "note": format_sampling_note(statistics),
        "filters": list_filters(cards),
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
        "vision tokens": sum_values(statistics.vision_tokens),
        "output tokens": sum_values(statistics.output_tokens),
        "cut off": statistics.finish_reasons["length"],
        "with violations": statistics.rows_with_violations,
        "clamped or repaired": statistics.flags.total(),
    }
    cost = sum(report.get("cost") or 0.0 for report in run_reports)
    return [(name, f"{count:,}") for name, count in counts.items()] + ([("cost", f"{cost:,.4g}")] if cost else [])


def sum_values(counts: Counter[int]) -> int:
    return sum(value * count for value, count in counts.items())


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


def format_sampling_note(statistics: AnswerStatistics) -> str:
    if statistics.parts_read == statistics.parts:
        return ""
    return f"The figures come from {statistics.parts_read:,} of {statistics.parts:,} parts, evenly spread."


def list_filters(cards: Iterable[Card]) -> list[tuple[str, str, int]]:
    """The filters that match a card: key, label and how many cards."""
    counts = Counter(key for card in cards for key in ("all", card.reason, *card.tags.split()))
    labels = {"all": "all", **REASON_LABELS, "marks": "with places or times", "doubts": "with doubts"}
    return [(key, label, counts[key]) for key, label in labels.items() if counts[key] or key == "all"]


def build_run_row(report: Mapping[str, Any]) -> dict[str, Any]:
    done_rows, seconds = report["answered"] + report["failed"], report["seconds"]
    return {
        **report,
        "run": format_run_time(report["run"]),
        "duration": format_duration(seconds),
        "rate": f"{done_rows / seconds:.1f}" if seconds else "",
        "versions": format_versions(report),
    }
