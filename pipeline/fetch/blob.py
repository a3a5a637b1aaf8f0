"""Bytes as they arrive -> a Blob: what kind it is, in memory or, a video, in a file.

The limit is checked on what is declared and again on what comes, before it is kept. Videos go to a
file because decord reads file objects whole; it is gone with `close`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source
from pipeline.fetch.sniff import SNIFF_BYTES, MediaKind, sniff_kind
from pipeline.job.spec import LimitsSection

ByteRanges = Sequence[tuple[int, int]]  # of bytes: from, to
PAGE_FRAGMENT = re.compile(r"#(page=[\d,\s-]*)$")


class RangeLoader(Protocol):
    """What brings the bytes that a file lacks."""

    def load_ranges(self, batches: Sequence[ByteRanges]) -> list[Future[None]]:
        """Starts to; each future is done when the ranges of its place, and of those before, are there."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Blob:
    """What arrived: `data`, or a `path` that is ours to delete if `temporary`."""

    uri: str  # as it may be shown
    kind: MediaKind | None  # by content; None: nothing known, maybe a picture all the same
    data: bytes | None = None
    path: Path | None = None
    is_temporary: bool = False
    pages: str = ""  # which, of a document: "3" or "1-4,7"; empty: all
    range_loader: RangeLoader | None = None  # of a file that is not all there yet

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory."""
        return len(self.data or b"")

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole, wherever it is."""
        return self.path.stat().st_size if self.path else self.memory_bytes

    def close(self) -> None:
        if self.range_loader:
            self.range_loader.close()
        if self.is_temporary and self.path:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Blob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def split_page_fragment(uri: str) -> tuple[str, str]:
    """
    >>> split_pages("s3://b/scan.pdf#page=2-4")
    ('s3://b/scan.pdf', '2-4')
    """
    match = PAGE_FRAGMENT.search(uri)
    return (uri[: match.start()], match[1].removeprefix("page=")) if match else (uri, "")


def check_byte_limit(size: int, kind: MediaKind | None, *, uri: str, limits: LimitsSection) -> None:
    most = limits.video.bytes if kind == "video" else limits.image.bytes
    if size > most:
        name = "video" if kind == "video" else "image"
        raise FetchError("too_large", f"{uri}: more than {most:,} bytes; raise limits.{name}.bytes to allow it")


def write_at(descriptor: int, data: bytes, offset: int, *, uri: str) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.pwrite(descriptor, left, offset + len(data) - len(left)) :]
    except OSError as error:
        folder = tempfile.gettempdir()
        raise FetchError("disk", f"{uri}: cannot be kept in {folder} (TMPDIR): {error.strerror}") from error


class BlobWriter:
    """Takes chunks in order; `blob` when there are no more, `drop` when it will not be used."""

    def __init__(self, uri: str, *, limits: LimitsSection, folder: Path, file_name: str):
        self.uri, self.limits, self.path = redact_source(uri), limits, folder / file_name
        self.buffered_pieces: list[bytes] = []
        self.received_bytes = self.declared_bytes = self.written_bytes = 0
        self.kind: MediaKind | None = None
        self.is_sniffed = False
        self.descriptor: int | None = None

    def check_declared_size(self, size: int) -> None:
        """What the sender declares: refused before it is read, as soon as the kind tells the limit."""
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
            self._append_to_file(data)
        elif self.kind == "video":
            self._move_to_file()

    def _move_to_file(self) -> None:
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        for part in self.buffered_pieces:
            self._append_to_file(part)
        self.buffered_pieces.clear()

    def _append_to_file(self, data: bytes) -> None:
        assert self.descriptor is not None
        write_at(self.descriptor, data, self.written_bytes, uri=self.uri)
        self.written_bytes += len(data)

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
