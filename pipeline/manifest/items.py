"""Turn a manifest row into an Item: what the model looks at and what it is asked. Nothing is fetched. The caller adds
the kept values.

Options of a chat part come before those of its row, and those of a row before those of the job. The text of a row is
filled into the prompt once, as it is: braces inside it mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.errors import ReadError
from pipeline.job.spec import Job
from pipeline.manifest.chat import ChatParser
from pipeline.manifest.column_selection import MAX_TOKENS_COLUMN, PLACEHOLDER, ManifestColumns
from pipeline.manifest.media_cells import CellError, parse_media_cell, parse_number, parse_options
from pipeline.manifest.row_reader import ManifestRow
from pipeline.types import Item, MediaRef, Turn


def build_item(
    manifest_row: ManifestRow, columns: ManifestColumns, job: Job, *, schema_prompt: str | None, base_folder: str
) -> Item:
    row, item_id, question = manifest_row.values, manifest_row.id, manifest_row.question
    with convert_cell_errors("row"):
        row_options = parse_options({name: row.get(name) for name in columns.options}, "column ")
        cells = [parse_media_cell(row.get(name), base_folder, f"column {name}") for name in columns.media]
        max_tokens = row.get(MAX_TOKENS_COLUMN) if MAX_TOKENS_COLUMN in columns.options else None
        max_new_tokens = parse_number(MAX_TOKENS_COLUMN, max_tokens, int, "column ")
    media = [replace(media_ref, options=row_options) for cell in cells for media_ref in cell if media_ref]
    if media and job.input.require == "all":
        require_all_media(columns.media, cells)
    system = None if job.prompt.system is None else fill_placeholders(job.prompt.system, row)
    if columns.messages is not None:
        with convert_cell_errors("messages"):
            parser = ChatParser(columns.messages, media, row_options, base_folder)
            turns = parser.parse_turns(row.get(columns.messages))
        if system is not None and turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
    else:
        user_prompt = schema_prompt if job.prompt.user is None else fill_placeholders(job.prompt.user, row)
        needs_words = not (job.answer.is_about_row and media)
        if user_prompt is not None and not user_prompt.strip() and needs_words:
            raise ReadError("no_prompt", "prompt.user names only columns that are empty in this row; nothing is asked")
        may_lack_media = job.answer.is_about_row and job.input.require == "any" and bool(user_prompt)
        turns = build_question_turns(media, system, user_prompt, () if may_lack_media else columns.media)
    return Item(item_id, question, turns, max_new_tokens=max_new_tokens)


def require_all_media(names: Sequence[str], cells: Sequence[Sequence[MediaRef | None]]) -> None:
    """An answer about some of a row's media would be a wrong label."""
    if incomplete := [name for name, cell in zip(names, cells, strict=True) if None in cell]:
        problem = f"column {incomplete[0]} lacks a medium, and the row has others"
        advice = "fill it in, or ask such rows with the media that are there: input.require: any"
        raise ReadError("missing_media", f"{problem}; {advice}")


@contextmanager
def convert_cell_errors(kind: str) -> Iterator[None]:
    try:
        yield
    except CellError as error:
        raise ReadError(kind, str(error)) from error


def build_question_turns(
    media: Sequence[MediaRef], system_prompt: str | None, user_prompt: str | None, media_columns: Sequence[str]
) -> tuple[Turn, ...]:
    """A chat of one question: the media, then the text.

    Empty media cells are usually a mistake in the manifest, and an answer without the image would be a wrong label.
    """
    if media_columns and not media:
        problem = f"{', '.join(media_columns)} is empty, and the question is not asked without media"
        advice = "give a URI, leave the row out, or ask it as a chat in a messages column, which may be text alone"
        raise ReadError("no_media", f"nothing to look at: {problem}; {advice}")
    question = Turn("user", (*media, *([user_prompt] if user_prompt else [])))
    return (question,) if system_prompt is None else (Turn("system", (system_prompt,)), question)


def fill_placeholders(template: str, row: Mapping[str, Any]) -> str:
    """
    >>> fill_placeholders("{a} and {{b}}{c}{d}", {"a": "{c}", "c": None, "d": float("nan")})
    '{c} and {b}'
    """

    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = row.get(match[1])
        if value is None or value != value:  # NaN: an empty cell
            return ""
        with convert_cell_errors("row"):
            is_nested = isinstance(value, dict | list)
            return encode_nested(match[1], value) if is_nested else format_scalar(match[1], value)

    return PLACEHOLDER.sub(fill, template)


def encode_nested(column: str, value: Any) -> str:
    """As JSON, which is what a JSONL manifest gives."""
    return json.dumps(value, ensure_ascii=False, default=lambda scalar: format_scalar(column, scalar))


def format_scalar(column: str, value: Any) -> str:
    if isinstance(value, bytes):
        raise CellError(f"column {column} holds bytes, which a prompt cannot; name a text column")
    return str(value)
