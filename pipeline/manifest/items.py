"""Turn a manifest row into an Item: what the model looks at and what it is asked. Nothing is fetched.

Options of a chat part come before those of its row, and those of a row before those of the job. The text of a row is
filled into the prompt once, as it is: braces inside it mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import ReadError
from pipeline.job.spec import Job
from pipeline.manifest import chat
from pipeline.manifest.column_selection import MAX_TOKENS_COLUMN, PLACEHOLDER, ManifestColumns
from pipeline.manifest.media_cells import OPTION_TYPES, parse_media_cell, parse_number, parse_options
from pipeline.types import Item, MediaRef, Turn


def build_item(
    row: Mapping[str, Any],
    *,
    item_id: str,
    question: str,
    columns: ManifestColumns,
    job: Job,
    user_prompt: str | None,
    base_folder: str,
) -> Item:
    """`user_prompt` is the job's, which may hold placeholders, or else the schema's."""
    option_values = {name: row.get(name) for name in columns.options if name != MAX_TOKENS_COLUMN}
    row_options = parse_options(option_values, "row", "column ")
    media = [
        replace(media_ref, options=media_ref.options.with_defaults(row_options))
        for name in columns.media
        for media_ref in parse_media_cell(row.get(name), base_folder, "row", f"column {name}")
    ]
    system = None if job.prompt.system is None else fill_placeholders(job.prompt.system, row)
    if columns.messages is not None:
        turns = chat.parse_turns(
            row.get(columns.messages), media, row_options=row_options, base_folder=base_folder, column=columns.messages
        )
        if system is not None and turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
    else:
        if job.prompt.user is not None and user_prompt:
            user_prompt = fill_placeholders(user_prompt, row)
        turns = build_question_turns(media, system, user_prompt, columns)
    max_tokens = row.get(MAX_TOKENS_COLUMN) if MAX_TOKENS_COLUMN in columns.options else None
    return Item(
        id=item_id,
        question=question,
        turns=turns,
        kept_values={name: row.get(name) for name in columns.kept},
        max_new_tokens=parse_number(MAX_TOKENS_COLUMN, max_tokens, OPTION_TYPES[MAX_TOKENS_COLUMN], "row", "column "),
    )


def build_question_turns(
    media: Sequence[MediaRef], system_prompt: str | None, user_prompt: str | None, columns: ManifestColumns
) -> tuple[Turn, ...]:
    """A chat of one question: the media, then the text.

    Empty media cells are usually a mistake in the manifest, and an answer without the image would be a wrong label.
    """
    if columns.media and not media:
        raise ReadError(
            "no_media",
            f"nothing to look at: {', '.join(columns.media)} is empty, and the question is not asked without media; "
            "give a URI, leave the row out, or ask it as a chat in a messages column, which may be text alone",
        )
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
        if isinstance(value, bytes):
            raise ReadError("row", f"column {match[1]} holds bytes, which a prompt cannot; name a text column")
        return "" if value is None or value != value else str(value)  # NaN: an empty cell

    return PLACEHOLDER.sub(fill, template)
