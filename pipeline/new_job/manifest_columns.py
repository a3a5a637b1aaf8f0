"""Looks at a manifest: its columns with examples, and which of them name the media and the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.manifest.column_selection import holds_bytes
from pipeline.manifest.files import ManifestFile, read_manifest_schema, read_with_retries
from pipeline.manifest.sources.folder import is_media_name

SAMPLE_ROWS = 200
SHOWN_EXAMPLES = 3
EXAMPLE_WIDTH = 28
ID_NAME = re.compile(r"(.*[_-])?(id|key|uuid|number|name)", re.IGNORECASE)
CHAT_NAMES = ("messages",)


class ManifestSample(NamedTuple):
    schema: pa.Schema
    values: Mapping[str, list[Any]]  # of the first rows, without columns that hold bytes
    default_id: str = ""  # a column that the format of the manifest has for ids


class ColumnChoice(NamedTuple):
    """Columns for `input.media` and `input.id`; None where no column looks like it."""

    media: str | None
    id: str | None
    has_chat: bool


def read_sample(file: ManifestFile) -> ManifestSample:
    schema = read_manifest_schema(file)
    names = [field.name for field in schema if not holds_bytes(field.type)]

    def read_first_rows() -> pa.Table:
        source = file.open_source()
        span = next(source.list_spans(SAMPLE_ROWS), None)
        return source.read_span(span, names) if span else schema.empty_table().select(names)

    table = read_with_retries(file, read_first_rows, has_started=False)
    values = {name: table[name].to_pylist() for name in names}
    return ManifestSample(schema, values, file.open_source().default_id or "")


def choose_columns(sample: ManifestSample) -> ColumnChoice:
    media = [field.name for field in sample.schema if holds_bytes(field.type)]
    media += [name for name, values in sample.values.items() if holds_media_names(values)]
    ids = [name for name, values in sample.values.items() if name not in media and may_be_id(name, values)]
    ids.sort(key=lambda name: (name.lower() != "id", not name.lower().endswith("id")))
    if sample.default_id in sample.values:
        ids.insert(0, sample.default_id)
    has_chat = any(name in sample.schema.names for name in CHAT_NAMES)
    return ColumnChoice(media[0] if media and not has_chat else None, ids[0] if ids else None, has_chat)


def holds_media_names(values: list[Any]) -> bool:
    """Whether most cells that are filled name media files, or hold lists of them."""
    cells = [cell[0] if isinstance(cell, list) and cell else cell for cell in values if cell]
    named = sum(isinstance(cell, str) and is_media_name(cell.partition("#")[0].partition("?")[0], "") for cell in cells)
    return named > len(cells) / 2


def may_be_id(name: str, values: list[Any]) -> bool:
    """Whether a column has an id's name and a value of its own in each row."""
    is_filled = all(isinstance(value, (str, int)) and value != "" for value in values)
    return bool(ID_NAME.fullmatch(name)) and bool(values) and is_filled and len(set(values)) == len(values)


def describe_columns(sample: ManifestSample, choice: ColumnChoice) -> Iterator[str]:
    """One line for each column: its type, some values, and what it is used for."""
    width = max(map(len, sample.schema.names), default=0)
    for field in sample.schema:
        purposes = {choice.media: "<- media", choice.id: "<- id"}
        filled = [value for value in sample.values.get(field.name, ()) if value is not None]
        examples = ", ".join(shorten(value) for value in filled[:SHOWN_EXAMPLES])
        line = f"  {field.name:<{width}}  {shorten(field.type):<{EXAMPLE_WIDTH}}  {examples}"
        yield f"{line.rstrip()}  {purposes[field.name]}" if field.name in purposes else line.rstrip()


def shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= EXAMPLE_WIDTH else f"{text[: EXAMPLE_WIDTH - 3]}..."
