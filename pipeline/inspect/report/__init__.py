"""Writes an HTML report of an output: figures, a sample of answers beside their media, and failures by reason.

The page opens offline. The report reads the output and its media, and writes nothing but the page. An output may be
somebody else's, so the caller says where media may be read from, and not the job that the output holds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.command_text import tidy_path
from pipeline.errors import JobError
from pipeline.fetch.stores import list_stores
from pipeline.inspect.compare import find_common_fields
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.report.cards import build_card, build_page_values, needs_wide_card
from pipeline.inspect.report.drawn_media import Palette
from pipeline.inspect.report.page import escape_control_characters, render_page
from pipeline.inspect.report.previews import PreviewLoader
from pipeline.inspect.report.statistics import ReportOptions, read_statistics
from pipeline.inspect.report.truth_marks import OtherAnswer, TruthMarks, compare_answers, mark_differences
from pipeline.inspect.score import find_schema, measure_answers, open_answer_truth
from pipeline.inspect.score.scored_rows import are_vectors, read_answered_rows
from pipeline.job.spec import InputSection, Job
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.output.local_files import write_named_file
from pipeline.truth.compared_fields import build_compared_fields
from pipeline.truth.truth_index import TruthIndex

EXAMPLES_PER_GROUP = 5  # of failed rows
ACCESS_KEYS = ("roots", "hosts", "stores")


@dataclass(frozen=True, slots=True)
class ReportFile:
    path: Path
    card_count: int
    size_bytes: int
    withheld_media: int  # because nobody allowed to read their place
    claimed_places: str  # the options that would allow what the output's own job allowed


def write_report(
    output_path: str, target: Path, *, options: ReportOptions | None = None, question: str | None = None
) -> ReportFile:
    """Report on the named question, or on the one asked last."""
    options = options or ReportOptions()
    reader = open_output_reader(output_path, question, shows_progress=True)
    statistics, sampled_rows = read_statistics(reader.dataset, options)
    if missing_ids := set(options.row_ids) - {sampled.row["id"] for sampled in sampled_rows}:
        raise JobError(f"--id {min(missing_ids)}: no row of that id is answered in {output_path}")
    failure_groups = reader.group_failures(EXAMPLES_PER_GROUP)
    field_meanings = find_field_meanings(read_answer_schema(reader.question))
    truth = open_report_truth(reader, options)
    score = measure_answers(reader, truth) if truth else None
    shown_truth = None if are_vectors(reader) else truth  # which rows belong together is no difference of one row
    others = read_other_answers(reader, options, [sampled.row for sampled in sampled_rows]) if options.against else {}
    palette = Palette()
    access = build_media_access(output_path, options)
    with closing(PreviewLoader(load_original_job(reader).model_copy(update={"input": access}))) as previews:
        wide = any(needs_wide_card(sampled.row) for sampled in sampled_rows)  # one width for all cards
        cards = [
            build_card(
                sampled,
                field_meanings,
                previews.load_preview,
                palette,
                wide=wide,
                truth_marks=mark_sampled_row(sampled.row, shown_truth, field_meanings) if shown_truth else None,
                other=others.get(sampled.row["id"]),
            )
            for sampled in reader.track(sampled_rows, "pictures", len(sampled_rows))
        ]
    if options.against:
        cards.sort(key=lambda card: (card.reason != "chosen", not card.disagreements))  # the rest stays in order
    html = render_page(build_page_values(reader, statistics, failure_groups, cards, score))
    write_named_file(target, html.encode())
    return ReportFile(target, len(cards), len(html.encode()), previews.withheld_media, format_claimed_places(reader))


def open_report_truth(reader: OutputReader, options: ReportOptions) -> TruthIndex | None:
    if options.truth is None:
        return None
    return open_answer_truth(reader, options.truth, id_column=options.truth_id_column, schema_spec=options.schema_spec)


def read_other_answers(
    reader: OutputReader, options: ReportOptions, rows: Sequence[Mapping[str, Any]]
) -> dict[str, OtherAnswer]:
    """The answers to the other question, of these rows, by their ids."""
    other_reader = open_output_reader(reader.dataset.store.path, options.against)
    root = find_common_fields(
        *(build_compared_fields(find_schema(each, options.schema_spec)) for each in (reader, other_reader))
    )
    shown = {row["id"]: {"answer": None, **row} for row in rows}
    return {
        other["id"]: compare_answers(shown[other["id"]], other, root)
        for other in read_answered_rows(other_reader, [])
        if other["id"] in shown
    }


def mark_sampled_row(row: Mapping[str, Any], truth: TruthIndex, field_meanings: Mapping[str, str]) -> TruthMarks | None:
    found = truth.find(row)
    return None if found is None else mark_differences(row, found, truth.root, field_meanings)


def read_answer_schema(question: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of the answers; empty if they are text."""
    text = str(question.get("answer", {}).get("schema", "")).rpartition("\n")[2]
    schema: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return schema


def load_original_job(reader: OutputReader) -> Job:
    """The job that asked the question, for its limits."""
    placeholder = {"name": "-", "input": {"manifest": "-"}, "model": {"weights": "-"}, "output": {"path": "-"}}
    try:
        return Job.model_validate(reader.job or placeholder)
    except ValidationError:  # the job of another version
        return Job.model_validate(placeholder)


def build_media_access(output_path: str, options: ReportOptions) -> InputSection:
    stores = (*list_stores([output_path]), *options.stores)
    try:
        return InputSection(manifest=("-",), roots=options.roots, hosts=options.hosts, stores=stores)
    except ValidationError as error:
        raise JobError(f"--stores: {error.errors()[0]['msg']}") from error


def format_claimed_places(reader: OutputReader) -> str:
    """Escaped, because the output may be a stranger's."""
    section = reader.job.get("input", {})
    options = [
        f"--{key} {shlex.quote(tidy_path(str(place)))}" for key in ACCESS_KEYS for place in section.get(key) or ()
    ]
    return escape_control_characters(" ".join(options))
