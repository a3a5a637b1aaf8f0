"""A row of the manifest -> an Item: what is looked at and what is asked. Nothing is opened.

What a row says goes before what the job says, and what a part of a chat says before its row.
Text of a row is filled into the prompt once, as it is: braces inside it mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import JobError, ReadError
from pipeline.job.spec import Job
from pipeline.manifest import chat
from pipeline.manifest.media_cells import OPTION_TYPES, parse_media_cell, parse_number, parse_options
from pipeline.registry import format_suggestion
from pipeline.types import Item, MediaRef, Turn

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
ROW_OPTIONS = (
    *("min_pixels", "max_pixels", "resized_width", "resized_height"),
    *("fps", "nframes", "video_start", "video_end"),
)
MAX_TOKENS_COLUMN = "max_new_tokens"
FOLDER_COLUMNS = {"path", "uri"}  # the columns of a folder of media


@dataclass(frozen=True, slots=True)
class ManifestColumns:
    """Which columns of a manifest a job reads, and for what."""

    media: tuple[str, ...]
    messages: str | None
    options: tuple[str, ...]
    prompt: tuple[str, ...]
    id: str | None
    kept: tuple[str, ...]

    @property
    def question_columns(self) -> tuple[str, ...]:
        """All that decide what a row asks, in an order that never changes."""
        chats = () if self.messages is None else (self.messages,)
        return tuple(dict.fromkeys((*self.media, *chats, *self.prompt, *self.options)))


def select_columns(job: Job, available: Sequence[str], *, schema_prompt: str | None) -> ManifestColumns:
    """The columns that a job needs, or a JobError that names the one that is not there."""
    wanted, prompt = job.input, job.prompt
    messages = wanted.messages
    if messages is None and prompt.user is None and "messages" in available:
        messages = "messages"
    if messages is not None and prompt.user is not None:
        raise JobError("both input.messages and prompt.user say what to ask; leave one of them out")
    if messages is None and prompt.user is None and schema_prompt is None:
        raise JobError(
            "there is nothing to ask: give prompt.user, or answer.schema with a question of its own, "
            "or input.messages with the column of a chat"
        )
    media = wanted.media
    if not media and messages is None and set(available) == FOLDER_COLUMNS:
        media = ("uri",)
    if not media and messages is None:
        raise JobError(
            "input.media names no column, so nothing would be looked at; name those with the media, "
            f"or in input.messages the column of a chat, which may be words alone; there are: {', '.join(available)}"
        )
    named = [("input.media", name) for name in media]
    named += [("input.messages", messages)] if messages is not None else []
    named += [("input.id", wanted.id)] if wanted.id is not None else []
    named += [("input.keep", name) for name in wanted.keep]
    places = [(key, name) for key in ("system", "user") for name in find_placeholders(getattr(prompt, key))]
    named += [(f"prompt.{key}", name) for key, name in places]
    for key, name in named:
        if name not in available:
            brace = " (for a brace that is text, write {{ or }})" if key.startswith("prompt.") else ""
            raise JobError(
                f"{key}: the manifest has no column {name!r}{brace}; it has: {', '.join(available) or 'none'}"
                f"{format_suggestion(name, dict.fromkeys(available))}"
            )
    return ManifestColumns(
        media=media,
        messages=messages,
        options=tuple(name for name in (*ROW_OPTIONS, MAX_TOKENS_COLUMN) if name in available),
        prompt=tuple(dict.fromkeys(name for _, name in places)),
        id=wanted.id,
        kept=wanted.keep,
    )


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
    """One row's Item. `user` is the job's question or else the schema's; `base` is the manifest's folder."""
    settings = {name: row.get(name) for name in columns.options if name != MAX_TOKENS_COLUMN}
    ask = parse_options(settings, "row", "column ")
    found = [
        medium
        for name in columns.media
        for medium in parse_media_cell(row.get(name), base_folder, "row", f"column {name}")
    ]
    media = [replace(medium, options=medium.options.with_defaults(ask)) for medium in found]
    system = None if job.prompt.system is None else fill_placeholders(job.prompt.system, row)
    if columns.messages is not None:
        turns = chat.parse_turns(
            row.get(columns.messages), media, row_options=ask, base_folder=base_folder, column=columns.messages
        )
        if system is not None and turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
    else:
        turns = build_question_turns(
            media,
            system,
            fill_placeholders(user_prompt, row) if job.prompt.user is not None and user_prompt else user_prompt,
            columns,
        )
    budget = row.get(MAX_TOKENS_COLUMN) if MAX_TOKENS_COLUMN in columns.options else None
    return Item(
        id=item_id,
        question=question,
        turns=turns,
        kept_values={name: row.get(name) for name in columns.kept},
        max_new_tokens=parse_number(MAX_TOKENS_COLUMN, budget, OPTION_TYPES[MAX_TOKENS_COLUMN], "row", "column "),
    )


def build_question_turns(
    media: Sequence[MediaRef], system_prompt: str | None, user_prompt: str | None, columns: ManifestColumns
) -> tuple[Turn, ...]:
    """A chat of one question: what to look at, then what is asked about it.

    Empty media cells are most often a mistake in the manifest, and an answer without the picture a wrong label.
    """
    if columns.media and not media:
        raise ReadError(
            "no_media",
            f"nothing to look at: {', '.join(columns.media)} is empty, and the question is not asked without it; "
            "give a URI, leave the row out, or ask it as a chat in a messages column, which may be words alone",
        )
    question = Turn("user", (*media, *([user_prompt] if user_prompt else [])))
    return (question,) if system_prompt is None else (Turn("system", (system_prompt,)), question)


def find_placeholders(template: str | None) -> list[str]:
    """The columns that a prompt names.

    >>> places_in("{vendor}: read {{all}} of {page}")
    ['vendor', 'page']
    """
    return [match[1] for match in PLACEHOLDER.finditer(template or "") if match[1] is not None]


def fill_placeholders(template: str, row: Mapping[str, Any]) -> str:
    """A prompt with the row's values in place.

    >>> filled("{a} and {{b}}{c}{d}", {"a": "{c}", "c": None, "d": float("nan")})
    '{c} and {b}'
    """

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = row.get(match[1])
        if isinstance(value, bytes):
            raise ReadError("row", f"column {match[1]} holds bytes, which the prompt cannot say; name a column of text")
        return "" if value is None or value != value else str(value)  # NaN is an empty cell of a column of numbers

    return PLACEHOLDER.sub(one, template)
