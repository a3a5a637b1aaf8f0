"""Which columns of a manifest a job reads, and what each is for.

A column that a job names and a file lacks is an error before anything is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import FILE_NAME_COLUMN, METADATA_FILES, ManifestFile
from pipeline.manifest.nested_columns import add_nested_fields
from pipeline.registry import format_suggestion

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
ROW_OPTIONS = (
    *("min_pixels", "max_pixels", "resized_width", "resized_height"),
    *("fps", "nframes", "video_start", "video_end"),
)
MAX_TOKENS_COLUMN = "max_new_tokens"
FOLDER_LISTING_COLUMNS = {"path", "uri"}  # a folder's listing, also where it is stored as a file


@dataclass(frozen=True, slots=True)
class ManifestColumns:
    media: tuple[str, ...]
    messages: str | None
    options: tuple[str, ...]
    prompt: tuple[str, ...]
    id: str | None
    kept: tuple[str, ...]

    @property
    def question_columns(self) -> tuple[str, ...]:
        """All columns that decide what a row asks, in an order that never changes."""
        chats = () if self.messages is None else (self.messages,)
        return tuple(dict.fromkeys((*self.media, *chats, *self.prompt, *self.options)))


def select_file_columns(job: Job, file: ManifestFile, schema: pa.Schema, schema_prompt: str | None) -> ManifestColumns:
    source = file.source_class
    default_media, default_id = source.default_media, source.default_id
    is_metadata = os.path.basename(file.url) in METADATA_FILES and job.input.messages is None
    if is_metadata and FILE_NAME_COLUMN in schema.names and "messages" not in schema.names:
        default_media, default_id = (FILE_NAME_COLUMN,), FILE_NAME_COLUMN
    if not job.input.media and default_media:
        names = {"media": default_media, "id": job.input.id or default_id}
        job = job.model_copy(update={"input": job.input.model_copy(update=names)})
    schema = add_nested_fields(schema, list_named_columns(job))
    try:
        columns = select_columns(job, schema.names, schema_prompt=schema_prompt)
    except JobError as error:
        raise JobError(f"{file.url}: {error}") from error
    binary = [name for name in columns.media if holds_bytes(schema.field(name).type)]
    if binary and not columns.id:
        example = f", such as {source.default_id}" if source.default_id else ""
        problem = f"column {binary[0]} holds bytes, so its rows need ids: set input.id to a column{example}"
        raise JobError(f"{file.url}: {problem}")
    return columns


def list_named_columns(job: Job) -> list[str]:
    """The columns that may be named by a path into a column."""
    names = [*job.input.media, job.input.messages, job.input.id]
    prompts = (job.prompt.system, job.prompt.user)
    return [*filter(None, names), *(name for prompt in prompts for name in find_placeholders(prompt))]


def select_columns(job: Job, available: Sequence[str], *, schema_prompt: str | None) -> ManifestColumns:
    messages = select_messages_column(job, available, schema_prompt)
    media = job.input.media
    if not media and messages is None and set(available) == FOLDER_LISTING_COLUMNS:
        media = ("uri",)
    reads_text = job.answer.is_about_row and bool(find_placeholders(job.prompt.user))
    if not media and messages is None and not reads_text:
        raise JobError(
            "input.media names no column, so there is nothing to look at; name the columns with media, or in "
            "input.messages the column with a chat, which may be text alone; the manifest has: " + ", ".join(available)
        )
    named_columns = {
        "input.media": media,
        "input.messages": () if messages is None else (messages,),
        "input.id": () if job.input.id is None else (job.input.id,),
        "input.keep": job.input.keep,
        "prompt.system": find_placeholders(job.prompt.system),
        "prompt.user": find_placeholders(job.prompt.user),
    }
    for key, name in ((key, name) for key, names in named_columns.items() for name in names):
        if name not in available:
            brace = " (for a brace that is text, write {{ or }})" if key.startswith("prompt.") else ""
            raise JobError(
                f"{key}: the manifest has no column {name!r}{brace}; it has: {', '.join(available) or 'none'}"
                f"{format_suggestion(name, dict.fromkeys(available))}"
            )
        if (count := available.count(name)) > 1:
            raise JobError(f"{key}: the manifest has {count} columns named {name!r}; rename all but one")
    for key, template in (("prompt.system", job.prompt.system), ("prompt.user", job.prompt.user)):
        if stray := re.search(r"[{}]", PLACEHOLDER.sub("", template or "")):
            raise JobError(f"{key}: a {stray[0]} stands alone; for a brace that is text, write {{{{ or }}}}")
    options = tuple(name for name in (*ROW_OPTIONS, MAX_TOKENS_COLUMN) if name in available)
    prompt = tuple(dict.fromkeys([*named_columns["prompt.system"], *named_columns["prompt.user"]]))
    return ManifestColumns(media, messages, options, prompt, job.input.id, job.input.keep)


def select_messages_column(job: Job, available: Sequence[str], schema_prompt: str | None) -> str | None:
    messages, user_prompt = job.input.messages, job.prompt.user
    if messages is not None and user_prompt is not None:
        raise JobError("both input.messages and prompt.user say what to ask; leave one of them out")
    if messages is not None or user_prompt is not None:
        return messages
    if "messages" in available:
        return "messages"
    if schema_prompt is None:
        advice = "or an answer.schema with a prompt of its own, or in input.messages the column with a chat"
        raise JobError(f"there is nothing to ask: give prompt.user, {advice}")
    return None


def find_placeholders(template: str | None) -> tuple[str, ...]:
    """The columns that a prompt names.

    >>> find_placeholders("{vendor}: read {{all}} of {page}")
    ('vendor', 'page')
    """
    return tuple(match[1] for match in PLACEHOLDER.finditer(template or "") if match[1] is not None)


def holds_bytes(data_type: pa.DataType) -> bool:
    """Whether cells hold bytes, a struct with bytes (as Hugging Face datasets write images), or a list of either."""
    if isinstance(data_type, pa.StructType):
        return any(holds_bytes(field.type) for field in data_type)
    if isinstance(data_type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return holds_bytes(data_type.value_type)
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))
