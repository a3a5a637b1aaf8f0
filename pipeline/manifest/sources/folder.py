"""A folder of media as a manifest: one row per file, with its `path` inside the folder and its `uri`.

Endings only leave out files that are not media; the kind of a file is told by its content when it is fetched.
"""

from __future__ import annotations

import os
from functools import cached_property
from urllib.parse import quote

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.fetch.sniff import list_added_kinds
from pipeline.manifest.sources.base import TableSource

MEDIA_ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".avif", ".heic", ".heif"),
    *(".pdf", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
FOLDER_SCHEMA = pa.schema([("path", pa.string()), ("uri", pa.string())])


class FolderSource(TableSource):
    default_media, default_id = ("uri",), "path"

    def read_schema(self) -> pa.Schema:
        return FOLDER_SCHEMA  # without listing the folder

    @cached_property
    def table(self) -> pa.Table:
        filesystem, root = fsspec.core.url_to_fs(self.url)
        endings = (*MEDIA_ENDINGS, *(ending for kind in list_added_kinds().values() for ending in kind.endings))
        media_paths = (path for path in filesystem.find(root) if path.lower().endswith(endings))
        paths = sorted(path for path in media_paths if "/." not in path[len(root) :])  # `._a.jpg`, .thumbnails
        if not paths:
            advice = f"their names end in {', '.join(endings)}"
            raise JobError(f"input.manifest: {self.url} holds no image, video or document; {advice}")
        names = [encode_non_utf8_name(path[len(root) :].lstrip("/")) for path in paths]
        uris = [encode_non_utf8_name(filesystem.unstrip_protocol(path)) for path in paths]
        return pa.table([names, uris], schema=FOLDER_SCHEMA)


def encode_non_utf8_name(name: str) -> str:
    """Percent-encode a name that is not UTF-8, as old archives have them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name), safe="/: ")
    return name
