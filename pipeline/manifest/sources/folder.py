"""A folder or pattern of media as a manifest: one row per file, with its `path` inside the folder and its `uri`.

Endings only leave out files that are not media; the kind of a file is told by its content when it is fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.fetch.sniff import list_added_kinds
from pipeline.fetch.storage_clients import get_version
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
        filesystem, path = fsspec.core.url_to_fs(self.url)
        folder = fsspec.core.url_to_fs(get_media_folder(self.url))[1]
        if folder == path or filesystem.isfile(path):
            found = self.find_files(filesystem, path)
        else:
            found = [name for name, info in filesystem.glob(path, detail=True).items() if info["type"] != "directory"]
        paths = sorted(path for path in found if is_media_name(path, folder))
        if not paths:
            raise build_empty_folder_error(self.url)
        names = [encode_name(path[len(folder) :].lstrip("/")) for path in paths]
        uris = [encode_name(filesystem.unstrip_protocol(path)) for path in paths]
        return pa.table([names, uris], schema=FOLDER_SCHEMA)

    def find_files(self, filesystem: Any, path: str) -> Iterable[str]:
        found: list[str] = filesystem.find(path)
        return found

    def list_versions(self, version_kind: str) -> Mapping[str, str]:
        """From one listing. Local files are cheaper to look at one by one."""
        filesystem, path = fsspec.core.url_to_fs(self.url)
        if "file" in filesystem.protocol or filesystem.isfile(path):
            return {}
        filesystem.invalidate_cache()
        is_folder = path == fsspec.core.url_to_fs(get_media_folder(self.url))[1]
        found = filesystem.find(path, detail=True) if is_folder else filesystem.glob(path, detail=True)
        versions = {name: get_version(info, version_kind) for name, info in found.items()}
        return {
            encode_name(filesystem.unstrip_protocol(name)): version for name, version in versions.items() if version
        }


class LinkedFolderSource(FolderSource):
    """A local folder with what its links to folders lead to."""

    def find_files(self, filesystem: Any, path: str) -> Iterable[str]:
        return find_through_links(path)


def build_empty_folder_error(url: str) -> JobError:
    advice = f"their names end in {', '.join(list_media_endings())}"
    return JobError(f"input.manifest: {url} holds no image, video or document; {advice}")


def require_readable_folders(folder: str) -> None:
    """Of a local folder and those below it. fsspec shows one that it cannot read as empty."""
    for _ in os.walk(folder, onerror=refuse_unreadable_folder):
        """Raises for the first one."""


def refuse_unreadable_folder(error: OSError) -> None:
    """Its files would be missing, and nobody would know."""
    name = os.path.basename(error.filename or "")
    if isinstance(error, PermissionError) and not name.startswith(".") and name != "lost+found":
        raise JobError(f"input.manifest: {error.filename}: no permission to read this folder") from error


def find_through_links(folder: str) -> Iterator[str]:
    """Every file below a local folder, also in linked folders, by the names of the links. A link to a folder that it is
    in is not followed: it has no end."""

    def walk(path: str, real_ancestors: frozenset[str]) -> Iterator[str]:
        try:
            names = sorted(os.listdir(path))
        except PermissionError as error:
            refuse_unreadable_folder(error)
            return
        for name in names:
            child = f"{path}/{name}"
            if not os.path.isdir(child):
                yield child
            elif (real_path := os.path.realpath(child)) not in real_ancestors:
                yield from walk(child, real_ancestors | {real_path})

    return walk(folder, frozenset([os.path.realpath(folder)]))


def get_media_folder(url: str) -> str:
    """The folder of a manifest of media, which is a folder, a pattern or one file.

    >>> [get_media_folder(url) for url in ("s3://b/in", "s3://b/in/*/a?.png", "s3://b/in/a.png")]
    ['s3://b/in', 's3://b/in', 's3://b/in']
    """
    before_wildcard = re.split(r"[*?\[]", url)[0]
    is_folder = before_wildcard == url and not url.lower().endswith(list_media_endings())
    return url if is_folder else before_wildcard.rpartition("/")[0]


def list_media_endings() -> tuple[str, ...]:
    return (*MEDIA_ENDINGS, *(ending for kind in list_added_kinds().values() for ending in kind.endings))


def is_media_name(path: str, folder: str) -> bool:
    is_hidden = "/." in path[len(folder) :]  # `._a.jpg`, .thumbnails
    return path.lower().endswith(list_media_endings()) and not is_hidden


def encode_name(name: str) -> str:
    """Percent-encode a name that is not UTF-8, as old archives have them, or that holds control characters.

    >>> encode_name("scans/a\\n1.jpg"), encode_name("scans/a #2.jpg")
    ('scans/a%0A1.jpg', 'scans/a #2.jpg')
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name), safe="/: ")
    return quote(name, safe="/: ") if re.search(r"[\x00-\x1f\x7f]", name) else name
