"""What was gathered -> the values that the page's template draws: tiles, charts, cards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.inspect.output_reader import OutputReader
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
from pipeline.inspect.report.gather import AnswerStatistics, FailureGroup, SampledRow, to_percent
from pipeline.inspect.report.marks import find_annotations
from pipeline.inspect.report.pictures import MediaPreview
from pipeline.inspect.status import format_run_time, format_versions
from pipeline.output.arrow_tables import RESERVED_COLUMNS
from pipeline.run.progress import format_duration

MIN_WIDE_VALUES = 9  # values in an answer that need the room beside the picture
REASON_LABELS = {"chosen": "chosen", "doubtful": "least confident", "random": "random"}
STEP_LABELS = {"worked": "answering", "waited": "waiting", "read": "reading rows"}
STEP_LABELS |= {"fetch": "fetching", "decode": "decoding", "prompt": "prompts", "commit": "committing"}


@dataclass(frozen=True, slots=True)
class Card:
    id: str
    why: str
    because: str  # the same in words
    answer: Any
    kept: Mapping[str, Any]
    media: Sequence[AnnotatedMedia]
    violations: Sequence[str]
    facts: Sequence[str]
    said: str  # the model's own words, where they differ
    wide: bool
    tags: str  # what the filter may ask for


PreviewLoaderFunction = Callable[[Mapping[str, Any]], MediaPreview]


def needs_wide_card(row: Mapping[str, Any]) -> bool:
    return count_values(get_answer_or_text(row)) > MIN_WIDE_VALUES or any(
        seen["kind"] == "video" for seen in row["media"] or ()
    )


def get_answer_or_text(row: Mapping[str, Any]) -> Any:
    return row.get("answer") if row.get("answer") is not None else row["text"]


def build_card(
    sampled_row: SampledRow,
    field_meanings: Mapping[str, str],
    load_preview: PreviewLoaderFunction,
    palette: Palette,
    *,
    wide: bool,
) -> Card:
    row = sampled_row.row
    answer = get_answer_or_text(row)
    found = find_annotations(row.get("answer"), field_meanings)
    media = [
        annotate_media(load_preview(seen), [mark for mark in found if mark.media_index == at], palette, wide=wide)
        for at, seen in enumerate(row["media"] or ())
    ]
    tokens = row["tokens"]
    facts = [f"{tokens['vision']:,} vision tokens", f"{tokens['output']:,} output tokens", row["finish"]]
    facts += [f"confidence {to_percent(row['logprob'])} %"] if row["logprob"] is not None else []
    facts += [f"{row['latency_s']:.3g} s"] if row.get("latency_s") is not None else []
    facts += [f"{row['attempts']} attempts"] if row["attempts"] > 1 else []
    tags = ["marks"] * bool(found) + ["doubts"] * bool(row["violations"] or row["flags"])
    return Card(
        id=row["id"],
        why=sampled_row.reason,
        because=REASON_LABELS[sampled_row.reason],
        answer=answer,
        kept={name: value for name, value in row.items() if name not in RESERVED_COLUMNS},
        media=media,
        violations=row["violations"] or (),
        facts=[*facts, *(row["flags"] or ())],
        said=row["raw"] or (row["text"] if answer is not row["text"] else ""),
        wide=wide,
        tags=" ".join(tags),
    )


def build_page_values(
    reader: OutputReader, statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], cards: Sequence[Card]
) -> dict[str, Any]:
    return {
        "name": reader.job.get("name", "answers"),
        "path": reader.dataset.store.path,
        "fingerprint": reader.dataset.fingerprint,
        "model": reader.job.get("model", {}).get("weights", ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "figures": statistics,
        "tiles": build_tiles(statistics, failure_groups, reader.run_reports),
        "charts": build_charts(statistics, failure_groups, reader.run_reports),
        "note": format_sampling_note(statistics),
        "segments": list_filters(cards),
        "cards": cards,
        "groups": failure_groups,
        "runs": [build_run_row(run) for run in reader.run_reports],
        "question": json.dumps(reader.question, indent=2, ensure_ascii=False),
    }


def build_tiles(
    statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], run_reports: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    whole = [("answered", statistics.rows), ("in errors/", sum(group.count for group in failure_groups))]
    whole += [
        ("vision tokens", sum_values(statistics.vision_tokens)),
        ("output tokens", sum_values(statistics.output_tokens)),
    ]
    whole += [("cut off", statistics.finish_reasons["length"]), ("with violations", statistics.rows_with_violations)]
    whole += [("clamped or repaired", statistics.flags.total())]
    cost = sum(run.get("cost") or 0.0 for run in run_reports)
    return [(name, f"{value:,}") for name, value in whole] + ([("cost", f"{cost:,.4g}")] if cost else [])


def sum_values(counts: Counter[int]) -> int:
    return sum(value * count for value, count in counts.items())


def build_charts(
    statistics: AnswerStatistics, failure_groups: Sequence[FailureGroup], run_reports: Sequence[Mapping[str, Any]]
) -> dict[str, list[ChartBar]]:
    spent: Counter[str] = Counter()
    for run in run_reports:
        spent.update(
            {STEP_LABELS[name]: each for name, each in run.get("workers_seconds", {}).items() if name in STEP_LABELS}
        )
    return {
        "vision": build_histogram(statistics.vision_tokens),
        "output": build_histogram(statistics.output_tokens),
        "confidence": build_histogram(statistics.confidence_percents, " %"),
        "latency": build_latency_histogram(statistics.latency_bins),
        "seconds": build_bars({name: each for name, each in spent.items() if each >= 0.05}, "{:,.1f} s"),
        "errors": build_bars({group.name: group.count for group in failure_groups}),
    }


def format_sampling_note(statistics: AnswerStatistics) -> str:
    if statistics.parts_read == statistics.parts:
        return ""
    return f"Figures are of {statistics.parts_read:,} of {statistics.parts:,} parts, evenly spread."


def list_filters(cards: Iterable[Card]) -> list[tuple[str, str, int]]:
    """What the filter offers: only what there is."""
    counts = Counter(name for each in cards for name in ("all", each.why, *each.tags.split()))
    named = {"all": "all", **REASON_LABELS, "marks": "with places or times", "doubts": "with doubts"}
    return [(key, said, counts[key]) for key, said in named.items() if counts[key] or key == "all"]


def build_run_row(run_report: Mapping[str, Any]) -> dict[str, Any]:
    done = run_report["answered"] + run_report["failed"]
    rate = f"{done / run_report['seconds']:.1f}" if run_report["seconds"] else ""
    return {
        **run_report,
        "run": format_run_time(run_report["run"]),
        "took": format_duration(run_report["seconds"]),
        "rate": rate,
        "versions": format_versions(run_report),
    }
