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
from pipeline.fetch.access import shown
from pipeline.fetch.sniff import HEAD, Kind, sniff
from pipeline.job.spec import Limits

Ranges = Sequence[tuple[int, int]]  # of bytes: from, to
PAGES = re.compile(r"#(page=[\d,\s-]*)$")


class Holes(Protocol):
    """What brings the bytes that a file lacks."""

    def fill(self, wanted: Sequence[Ranges]) -> list[Future[None]]:
        """Starts to; each future is done when the ranges of its place, and of those before, are there."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Blob:
    """What arrived: `data`, or a `path` that is ours to delete if `temporary`."""

    uri: str  # as it may be shown
    kind: Kind | None  # by content; None: nothing known, maybe a picture all the same
    data: bytes | None = None
    path: Path | None = None
    temporary: bool = False
    pages: str = ""  # which, of a document: "3" or "1-4,7"; empty: all
    holes: Holes | None = None  # of a file that is not all there yet

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return len(self.data or b"")

    @property
    def size(self) -> int:
        """Bytes of the whole, wherever it is."""
        return self.path.stat().st_size if self.path else self.held

    def close(self) -> None:
        if self.holes:
            self.holes.close()
        if self.temporary and self.path:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Blob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def split_pages(uri: str) -> tuple[str, str]:
    """
    >>> split_pages("s3://b/scan.pdf#page=2-4")
    ('s3://b/scan.pdf', '2-4')
    """
    match = PAGES.search(uri)
    return (uri[: match.start()], match[1].removeprefix("page=")) if match else (uri, "")


def check_bytes(size: int, kind: Kind | None, *, uri: str, limits: Limits) -> None:
    most = limits.video.bytes if kind == "video" else limits.image.bytes
    if size > most:
        name = "video" if kind == "video" else "image"
        raise FetchError("too_large", f"{uri}: more than {most:,} bytes; raise limits.{name}.bytes to allow it")


def keep(file: int, data: bytes, place: int, *, uri: str) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.pwrite(file, left, place + len(data) - len(left)) :]
    except OSError as error:
        folder = tempfile.gettempdir()
        raise FetchError("disk", f"{uri}: cannot be kept in {folder} (TMPDIR): {error.strerror}") from error


class Sink:
    """Takes chunks in order; `blob` when there are no more, `drop` when it will not be used."""

    def __init__(self, uri: str, *, limits: Limits, folder: Path, name: str):
        self.uri, self.limits, self.path = shown(uri), limits, folder / name
        self.parts: list[bytes] = []
        self.size = self.declared = self.written = 0
        self.kind: Kind | None = None
        self.sniffed = False
        self.file: int | None = None

    def expect(self, size: int) -> None:
        """What the sender declares: refused before it is read, as soon as the kind tells the limit."""
        self.declared = size
        check_bytes(size, "video", uri=self.uri, limits=self.limits)

    def feed(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.file is None:
            self.parts.append(chunk)
        if self.size >= HEAD or self.file is not None:
            if not self.sniffed:
                self.sniffed, self.kind = True, sniff(b"".join(self.parts)[:HEAD])
            check_bytes(max(self.size, self.declared), self.kind, uri=self.uri, limits=self.limits)
        if self.file is not None:
            self._write(chunk)
        elif self.kind == "video":
            self._spill()

    def _spill(self) -> None:
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        for part in self.parts:
            self._write(part)
        self.parts.clear()

    def _write(self, chunk: bytes) -> None:
        assert self.file is not None
        keep(self.file, chunk, self.written, uri=self.uri)
        self.written += len(chunk)

    def blob(self, pages: str = "", holes: Holes | None = None) -> Blob:
        data = b"".join(self.parts) if self.file is None else None
        kind = self.kind or (sniff(data[:HEAD]) if data else None)
        if kind == "video" and self.file is None:
            self._spill()
        if self.file is None:
            return Blob(self.uri, kind, data=data, pages=pages)
        os.close(self.file)
        return Blob(self.uri, kind, path=self.path, temporary=True, pages=pages, holes=holes)

    def drop(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.path.unlink(missing_ok=True)
