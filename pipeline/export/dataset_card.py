"""Writes the card of a data set, README.md: what was asked, of which model, and how good the answers are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.export.base import ExportTask
from pipeline.output.arrow_tables import describe_column
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore

CARD = "README.md"
FENCE = "~~~~"


def write_card(task: ExportTask, files_by_split: Mapping[str, str]) -> None:
    """`files_by_split` has a pattern of files for each split that has rows."""
    data_files = [{"split": split, "path": pattern} for split, pattern in files_by_split.items()]
    header = {"configs": [{"config_name": "default", "data_files": data_files}], "tags": ["vlbatch"]}
    lines = ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", "", *list_card_lines(task), ""]
    task.target.overwrite(CARD, "\n".join(lines).encode())


def list_card_lines(task: ExportTask) -> Iterator[str]:
    context, job = task.context, task.context.job
    yield f"# {job.name}"
    yield ""
    yield f"Labels by the model `{context.model_name}`, made with vlbatch (question `{context.fingerprint}`). They are"
    yield "the answers of a model: where nobody checked them, they may be wrong."
    yield from list_question_lines(task)
    yield from list_score_lines(task)
    yield from ("", "## Columns", "", "| column | type | what it is |", "|---|---|---|")
    for field in task.columns:
        described = describe_column(field.name) or "of the manifest"
        yield f"| `{field.name}` | {escape_cell(shorten(str(field.type)))} | {escape_cell(described)} |"


def list_question_lines(task: ExportTask) -> Iterator[str]:
    job, context = task.context.job, task.context
    yield from ("", "## What was asked")
    for title, text in (("System", job.prompt.system), ("User", job.prompt.user or context.schema_prompt)):
        if text:
            yield from ("", f"{title}:", "", FENCE, text, FENCE)
    if job.answer.choices:
        yield from ("", f"Choices: {', '.join(f'`{choice}`' for choice in job.answer.choices)}")
    if context.schema:
        text = json.dumps(context.schema.json_schema, indent=1, ensure_ascii=False)
        yield from ("", "JSON Schema of the answer:", "", f"{FENCE}json", text, FENCE)


def list_score_lines(task: ExportTask) -> Iterator[str]:
    """The newest score of the question, if it has any."""
    score = Dataset(OutputStore(task.context.job.output.path), task.context.fingerprint).read_newest_score()
    fields: Mapping[str, Any] = (score or {}).get("fields", {})
    if not fields:
        return
    yield from ("", "## How good the answers are", "", "| field | measure | value |", "|---|---|---|")
    for path, field in fields.items():
        for name, estimate in field.get("measures", {}).items():
            if estimate:
                yield f"| `{path or 'answer'}` | {escape_cell(name)} | {estimate['value']:.4g} |"


def shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def escape_cell(text: str) -> str:
    """
    >>> escape_cell("a|b")
    'a\\\\|b'
    """
    return text.replace("|", "\\|").replace("\n", " ")
