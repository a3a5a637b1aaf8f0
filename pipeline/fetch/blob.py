"""Collect arriving bytes in a Blob: a video in a temporary file, everything else in memory.

Byte limits are checked on the declared size, and again on what arrives before it is kept. Videos go to a file because
they are large; `close` deletes the file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source
from pipeline.fetch.sniff import SNIFF_BYTES, MediaKind, sniff_kind
from pipeline.job.spec import LimitsSection

ByteRanges = Sequence[tuple[int, int]]  # start and end, in bytes
PAGE_FRAGMENT = re.compile(r"#page=([^#/.]+)$")  # and not a file's name, such as a#page=2.jpg
WEB_FRAGMENT = re.compile(r"^https?:[^#]*?(#.*)$", re.I)  # which no server gets to see
WEB_PAGE_QUERY = re.compile(r"^https?:[^#]*(\?(?:[^#]*&)?pages?=[^&#]*)", re.I)


class RangeLoader(Protocol):
    """Downloads ranges that a file lacks."""

    def load_ranges(self, batches: Sequence[ByteRanges]) -> list[Future[None]]:
        """Start downloading; a future is done when the ranges of its batch, and of those before it, are there."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of a source, in `data` or in a file."""

    uri: str  # redacted
    kind: MediaKind | None  # by content; None if the content is unknown, which may still be an image
    data: bytes | None = None
    path: Path | None = None
    is_temporary: bool = False  # `close` deletes the file
    pages: str = ""  # of a document: "3" or "1-4,7"; empty: all; see `split_page_fragment`
    range_loader: RangeLoader | None = None  # for a file that lacks ranges

    @property
    def memory_bytes(self) -> int:
        return len(self.data or b"")

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path else self.memory_bytes

    def close(self) -> None:
        if self.range_loader:
            self.range_loader.close()
        if self.is_temporary and self.path:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Blob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_page_fragment(uri: str) -> tuple[str, str]:
    """The URI to fetch, and the pages that it selects. Web URIs may ask for pages in words that we do not understand;
    these are given back as they stand, with their # or ?.

    >>> split_page_fragment("s3://b/scan.pdf#page=2-4"), split_page_fragment("https://a.com/scan.pdf#2")
    (('s3://b/scan.pdf', '2-4'), ('https://a.com/scan.pdf', '#2'))
    """
    if match := PAGE_FRAGMENT.search(uri):
        return uri[: match.start()], match[1]
    if match := WEB_FRAGMENT.search(uri):
        return uri[: match.start(1)], match[1]
    match = WEB_PAGE_QUERY.search(uri)
    return uri, match[1] if match else ""


def check_byte_limit(size: int, kind: MediaKind | None, *, uri: str, limits: LimitsSection) -> None:
    section, max_bytes = ("video", limits.video.bytes) if kind == "video" else ("image", limits.image.bytes)
    if size > max_bytes:
        raise FetchError("too_large", f"{uri}: more than {max_bytes:,} bytes; raise limits.{section}.bytes to allow it")


def write_at(descriptor: int, data: bytes, offset: int, *, uri: str) -> None:
    remaining = memoryview(data)
    try:
        while remaining:
            remaining = remaining[os.pwrite(descriptor, remaining, offset + len(data) - len(remaining)) :]
    except OSError as error:
        folder = tempfile.gettempdir()
        raise FetchError("disk", f"{uri}: cannot be written to {folder} (TMPDIR): {error.strerror}") from error


class BlobWriter:
    """Takes bytes in order. Ends with `to_blob`, or with `discard` if the bytes are not used."""

    def __init__(self, uri: str, *, limits: LimitsSection, path: Path):
        self.uri, self.limits, self.path = redact_source(uri), limits, path
        self.buffered_pieces: list[bytes] = []
        self.received_bytes = self.declared_bytes = 0
        self.kind: MediaKind | None = None
        self.is_sniffed = False
        self.descriptor: int | None = None

    def check_declared_size(self, size: int) -> None:
        """Refuse what exceeds every limit; `write` checks again once the kind is known."""
        self.declared_bytes = size
        check_byte_limit(size, "video", uri=self.uri, limits=self.limits)

    def write(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.descriptor is None:
            self.buffered_pieces.append(data)
        if self.received_bytes >= SNIFF_BYTES or self.descriptor is not None:
            if not self.is_sniffed:
                self.is_sniffed, self.kind = True, sniff_kind(b"".join(self.buffered_pieces)[:SNIFF_BYTES])
            check_byte_limit(max(self.received_bytes, self.declared_bytes), self.kind, uri=self.uri, limits=self.limits)
        if self.descriptor is not None:
            write_at(self.descriptor, data, self.received_bytes - len(data), uri=self.uri)
        elif self.kind == "video":
            self._move_to_file()

    def _move_to_file(self) -> None:
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        write_at(self.descriptor, b"".join(self.buffered_pieces), 0, uri=self.uri)
        self.buffered_pieces.clear()

    def to_blob(self, pages: str = "", range_loader: RangeLoader | None = None) -> Blob:
        data = b"".join(self.buffered_pieces) if self.descriptor is None else None
        kind = self.kind or (sniff_kind(data[:SNIFF_BYTES]) if data else None)
        if kind == "video" and self.descriptor is None:
            self._move_to_file()
        if self.descriptor is None:
            return Blob(self.uri, kind, data=data, pages=pages)
        os.close(self.descriptor)
        return Blob(self.uri, kind, path=self.path, is_temporary=True, pages=pages, range_loader=range_loader)

    def discard(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.path.unlink(missing_ok=True)
