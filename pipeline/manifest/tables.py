"""What the URL of a manifest stands for: numbered files, and tables that are folders (Delta, Iceberg, Lance).

A table is listed once, when a run is planned, and every process then reads the same version of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pipeline.errors import JobError
from pipeline.manifest.sources.base import Source, TablePartSource
from pipeline.registry import SOURCES, import_extra, load_registered

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
CHOICE = re.compile(r"#((?:version|config|split)=[^#]*)$")
CATALOG_SCHEME = "iceberg://"  # iceberg://CATALOG/namespace.table


class FoundTable(NamedTuple):
    url: str  # of its folder
    kind: str  # a name in SOURCES
    parts: list[str]


def load_source_class(kind: str) -> type[Source]:
    source_class: type[Source] = load_registered(SOURCES, kind, "source")
    return source_class


def split_choice(url: str) -> tuple[str, dict[str, str]]:
    """The URL, and what it chooses.

    >>> split_choice("s3://b/table#version=3"), split_choice("/in/a#b.parquet")
    (('s3://b/table', {'version': '3'}), ('/in/a#b.parquet', {}))
    """
    match = CHOICE.search(url)
    return (url[: match.start()], dict(parse_qsl(match[1]))) if match else (url, {})


def expand_braces(url: str) -> list[str]:
    """The URLs that braces stand for, as WebDataset and shells write numbered files.

    >>> expand_braces("s3://b/{08..10}.tar"), expand_braces("{a,b}/{1..2}.tar"), expand_braces("a{b}.tar")
    (['s3://b/08.tar', 's3://b/09.tar', 's3://b/10.tar'], ['a/1.tar', 'a/2.tar', 'b/1.tar', 'b/2.tar'], ['a{b}.tar'])
    """
    match = BRACES.search(url)
    if not match:
        return [url]
    first, last = match[1], match[2]
    if first:
        texts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        texts = match[3].split(",")
    return [f"{url[: match.start()]}{text}{rest}" for text in texts for rest in expand_braces(url[match.end() :])]


def find_catalog_table(url: str) -> str:
    """The metadata file of a table that a catalog of pyiceberg's configuration names; other URLs as they are."""
    if not url.startswith(CATALOG_SCHEME):
        return url
    catalog_name, _, identifier = url.removeprefix(CATALOG_SCHEME).partition("/")
    errors = import_extra("pyiceberg.exceptions", "pyiceberg")
    problems = (ValueError, errors.NoSuchTableError, errors.NoSuchNamespaceError, errors.RESTError)
    try:
        table = import_extra("pyiceberg.catalog", "pyiceberg").load_catalog(catalog_name).load_table(identifier)
    except problems as error:
        raise JobError(f"input.manifest: {url}: {error}") from error
    return str(table.metadata_location)


def find_table(filesystem: Any, path: str, choice: Mapping[str, str]) -> FoundTable | None:
    """The table that a path leads to, with the parts of the chosen version."""
    endings = tuple(ending for kind in SOURCES for ending in load_source_class(kind).file_endings)
    if not choice and (path.lower().endswith(endings) or re.search(r"[*?\[]", path)):
        return None  # without asking the store
    for kind in SOURCES:
        source_class = load_source_class(kind)
        if not issubclass(source_class, TablePartSource) or (source_class.needs_choice and not choice):
            continue
        if not source_class.is_table(filesystem, path):
            continue
        url = filesystem.unstrip_protocol(path)
        if unknown := choice.keys() - set(source_class.choices):
            known = " and ".join(source_class.choices)
            raise JobError(f"input.manifest: {url}: a {kind} table has no {min(unknown)}; it has {known}")
        found = source_class.list_parts(url, choice)
        if not found.parts:
            raise JobError(f"input.manifest: {url}: this {kind} table has no rows")
        return FoundTable(found.url, kind, found.parts)
    if choice:
        shown = "&".join(f"{key}={value}" for key, value in choice.items())
        raise JobError(f"input.manifest: {filesystem.unstrip_protocol(path)} is no table, so it has no #{shown}")
    return None
