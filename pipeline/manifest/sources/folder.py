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

MEDIA_ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".avif", ".heic", ".heif"),
    *(".pdf", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
FOLDER_SCHEMA = pa.schema([("path", pa.string()), ("uri", pa.string())])


class FolderSource:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def media_files(self) -> list[tuple[str, str]]:
        filesystem, root = fsspec.core.url_to_fs(self.url)
        media = (path for path in filesystem.find(root) if path.lower().endswith(MEDIA_ENDINGS))
        found = sorted(path for path in media if "/." not in path[len(root) :])  # `._a.jpg`, .thumbnails
        if not found:
            kinds = ", ".join(MEDIA_ENDINGS)
            raise JobError(f"input.manifest: {self.url} holds no picture, video or document; these end in {kinds}")
        return [
            (
                encode_non_utf8_name(path[len(root) :].lstrip("/")),
                encode_non_utf8_name(filesystem.unstrip_protocol(path)),
            )
            for path in found
        ]

    def read_schema(self) -> pa.Schema:
        return FOLDER_SCHEMA

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        for start in range(0, len(self.media_files), rows_per_span):
            yield start, min(start + rows_per_span, len(self.media_files))

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        paths, uris = zip(*self.media_files[span[0] : span[1]], strict=True)
        table = pa.table([paths, uris], schema=FOLDER_SCHEMA)
        return table if columns is None else table.select(columns)


def encode_non_utf8_name(name: str) -> str:
    """As it is; a name that is not UTF-8, from an old archive say, percent-encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name), safe="/: ")
    return name
