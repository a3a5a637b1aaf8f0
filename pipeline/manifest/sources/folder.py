"""A folder of pictures and videos -> one row a file: `path` inside the folder and `uri`.

Told by ending only here, to leave out what lies about beside the media; what a file really is, its content tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from urllib.parse import quote

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.manifest.sources import Span

ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".avif", ".heic", ".heif"),
    *(".pdf", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
SCHEMA = pa.schema([("path", pa.string()), ("uri", pa.string())])


class Folder:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def files(self) -> list[tuple[str, str]]:
        filesystem, root = fsspec.core.url_to_fs(self.url)
        media = (path for path in filesystem.find(root) if path.lower().endswith(ENDINGS))
        found = sorted(path for path in media if "/." not in path[len(root) :])  # `._a.jpg`, .thumbnails
        if not found:
            kinds = ", ".join(ENDINGS)
            raise JobError(f"input.manifest: {self.url} holds no picture, video or document; these end in {kinds}")
        return [(spelt(path[len(root) :].lstrip("/")), spelt(filesystem.unstrip_protocol(path))) for path in found]

    def schema(self) -> pa.Schema:
        return SCHEMA

    def spans(self, rows: int) -> Iterator[Span]:
        for start in range(0, len(self.files), rows):
            yield start, min(start + rows, len(self.files))

    def read(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        paths, uris = zip(*self.files[span[0] : span[1]], strict=True)
        table = pa.table([paths, uris], schema=SCHEMA)
        return table if columns is None else table.select(columns)


def spelt(name: str) -> str:
    """As it is; a name that is not UTF-8, from an old archive say, percent-encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name), safe="/: ")
    return name
