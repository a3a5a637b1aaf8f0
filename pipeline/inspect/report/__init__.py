"""An output folder -> one HTML page to look at: figures, a gallery with what the model saw and said, errors by reason.

Opens offline, from any disk. Reads the output and the media it speaks of; writes only the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError, OutputError
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.report.cards import build_card, build_page_values, needs_wide_card
from pipeline.inspect.report.charts import Palette
from pipeline.inspect.report.gather import ReportOptions, gather_answers, group_failures
from pipeline.inspect.report.page import render_page
from pipeline.inspect.report.pictures import PreviewLoader
from pipeline.job.spec import Job
from pipeline.output.answer.geometry import find_field_meanings


@dataclass(frozen=True, slots=True)
class ReportFile:
    path: Path
    card_count: int
    size_bytes: int


def write_report(
    output_path: str, target: Path, *, options: ReportOptions | None = None, question: str | None = None
) -> ReportFile:
    """Write the page for one question of an output: the one named, or the one asked last."""
    options = options or ReportOptions()
    folder = open_output_reader(output_path, question)
    figures, chosen = gather_answers(folder.dataset, options)
    if missing := set(options.row_ids) - {each.row["id"] for each in chosen}:
        raise JobError(f"--id {min(missing)}: no row of that id is answered in {output_path}")
    found = group_failures(folder.read_failed_rows())
    means = find_field_meanings(read_answer_schema(folder.question))
    palette = Palette()
    with closing(PreviewLoader(load_original_job(folder))) as album:
        wide = any(needs_wide_card(each.row) for each in chosen)  # all alike: a page that is easy to scan
        cards = [build_card(each, means, album.load_preview, palette, wide=wide) for each in chosen]
    html = render_page(build_page_values(folder, figures, found, cards))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}; name another place with --to") from error
    return ReportFile(target, len(cards), len(html.encode()))


def read_answer_schema(question: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema that the answers fit; empty where they are text."""
    text = str(question.get("answer", {}).get("schema", "")).rpartition("\n")[2]
    found: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return found


def load_original_job(reader: OutputReader) -> Job:
    """The job that asked, for where its media may be looked for."""
    nowhere = {"name": "-", "input": {"manifest": "-"}, "model": {"weights": "-"}, "output": {"path": "-"}}
    try:
        return Job.model_validate(reader.job or nowhere)
    except ValidationError:  # of another version
        return Job.model_validate(nowhere)
