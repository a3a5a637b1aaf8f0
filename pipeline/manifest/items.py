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
from pipeline.manifest.media_cells import SETTINGS, ask_of, media_of, number
from pipeline.registry import nearest
from pipeline.types import Item, Medium, Turn

PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
ROW_SETTINGS = (
    *("min_pixels", "max_pixels", "resized_width", "resized_height"),
    *("fps", "nframes", "video_start", "video_end"),
)
BUDGET = "max_new_tokens"
FOLDER = {"path", "uri"}  # the columns of a folder of media


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a manifest a job reads, and for what."""

    media: tuple[str, ...]
    messages: str | None
    ask: tuple[str, ...]
    prompt: tuple[str, ...]
    id: str | None
    keep: tuple[str, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """All that decide what a row asks, in an order that never changes."""
        chats = () if self.messages is None else (self.messages,)
        return tuple(dict.fromkeys((*self.media, *chats, *self.prompt, *self.ask)))


def columns(job: Job, available: Sequence[str], *, default_user: str | None) -> Columns:
    """The columns that a job needs, or a JobError that names the one that is not there."""
    wanted, prompt = job.input, job.prompt
    messages = wanted.messages
    if messages is None and prompt.user is None and "messages" in available:
        messages = "messages"
    if messages is not None and prompt.user is not None:
        raise JobError("both input.messages and prompt.user say what to ask; leave one of them out")
    if messages is None and prompt.user is None and default_user is None:
        raise JobError(
            "there is nothing to ask: give prompt.user, or answer.schema with a question of its own, "
            "or input.messages with the column of a chat"
        )
    media = wanted.media
    if not media and messages is None and set(available) == FOLDER:
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
    places = [(key, name) for key in ("system", "user") for name in places_in(getattr(prompt, key))]
    named += [(f"prompt.{key}", name) for key, name in places]
    for key, name in named:
        if name not in available:
            brace = " (for a brace that is text, write {{ or }})" if key.startswith("prompt.") else ""
            raise JobError(
                f"{key}: the manifest has no column {name!r}{brace}; it has: {', '.join(available) or 'none'}"
                f"{nearest(name, dict.fromkeys(available))}"
            )
    return Columns(
        media=media,
        messages=messages,
        ask=tuple(name for name in (*ROW_SETTINGS, BUDGET) if name in available),
        prompt=tuple(dict.fromkeys(name for _, name in places)),
        id=wanted.id,
        keep=wanted.keep,
    )


def read(
    row: Mapping[str, Any], *, id: str, question: str, columns: Columns, job: Job, user: str | None, base: str
) -> Item:
    """One row's Item. `user` is the job's question or else the schema's; `base` is the manifest's folder."""
    settings = {name: row.get(name) for name in columns.ask if name != BUDGET}
    ask = ask_of(settings, "row", "column ")
    found = [medium for name in columns.media for medium in media_of(row.get(name), base, "row", f"column {name}")]
    media = [replace(medium, ask=medium.ask.over(ask)) for medium in found]
    system = None if job.prompt.system is None else filled(job.prompt.system, row)
    if columns.messages is not None:
        turns = chat.turns(row.get(columns.messages), media, ask=ask, base=base, column=columns.messages)
        if system is not None and turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
    else:
        turns = asked(media, system, filled(user, row) if job.prompt.user is not None and user else user, columns)
    budget = row.get(BUDGET) if BUDGET in columns.ask else None
    return Item(
        id=id,
        question=question,
        turns=turns,
        keep={name: row.get(name) for name in columns.keep},
        max_new_tokens=number(BUDGET, budget, SETTINGS[BUDGET], "row", "column "),
    )


def asked(media: Sequence[Medium], system: str | None, user: str | None, columns: Columns) -> tuple[Turn, ...]:
    """A chat of one question: what to look at, then what is asked about it.

    Empty media cells are most often a mistake in the manifest, and an answer without the picture a wrong label.
    """
    if columns.media and not media:
        raise ReadError(
            "no_media",
            f"nothing to look at: {', '.join(columns.media)} is empty, and the question is not asked without it; "
            "give a URI, leave the row out, or ask it as a chat in a messages column, which may be words alone",
        )
    question = Turn("user", (*media, *([user] if user else [])))
    return (question,) if system is None else (Turn("system", (system,)), question)


def places_in(template: str | None) -> list[str]:
    """The columns that a prompt names.

    >>> places_in("{vendor}: read {{all}} of {page}")
    ['vendor', 'page']
    """
    return [match[1] for match in PLACE.finditer(template or "") if match[1] is not None]


def filled(template: str, row: Mapping[str, Any]) -> str:
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

    return PLACE.sub(one, template)
