"""A source -> the beginning of its bytes, which is enough to know a picture's size; the whole only when that is not.

The same rules and limits as fetching. What needs more than its beginning comes whole at once: documents, pages of
TIFFs, animations, and videos.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FetchError
from pipeline.intake import store
from pipeline.intake.blob import Blob, Sink, check_bytes, split_pages
from pipeline.intake.fetch import Fetcher
from pipeline.intake.guard import WEB, local, scheme, shown
from pipeline.intake.retry import persist
from pipeline.intake.sniff import HEAD, sniff

HEAD_BYTES = 64 << 10  # EXIF marks, colour profiles and small previews included
EARLY = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM")  # formats whose size stands at the beginning


@dataclass(frozen=True, slots=True)
class Head(Blob):
    """The beginning of a Blob, and a way to all of it."""

    whole: Callable[[], Blob] | None = None


class Heads(Fetcher):
    """A Fetcher that brings beginnings."""

    async def _reach(self, source: str, whole: bool = False) -> Blob:
        kind = scheme(source)
        uri, pages = split_pages(source)
        if whole or pages or kind in WEB:
            return await super()._reach(source, whole)
        if kind == "file":
            data, size = await asyncio.to_thread(beginning, local(uri, self.roots))
        else:
            data, size = await persist(lambda: self._first(kind, uri))
            if data and len(data) == size:
                return Blob(shown(uri), sniff(data[:HEAD]), data=data)
        if len(data) == size or not data.startswith(EARLY):
            return await super()._reach(source, whole)
        check_bytes(size, "image", uri=shown(uri), limits=self.limits)
        return Head(shown(uri), "image", data=data, whole=lambda: self._whole(source))

    async def _first(self, kind: str, uri: str) -> tuple[bytes, int]:
        """Of an object: its first bytes, and how many it has; nothing of what is not a picture."""
        sink = Sink(uri, limits=self.limits, folder=self.scratch.path, name=str(next(self.names)))
        try:
            self.stores[kind] = self.stores.get(kind) or store.Store(kind)
            rest = await self.stores[kind].read(kind + uri[len(kind) :], sink, first=HEAD_BYTES)
            return b"".join(sink.parts), rest.size if rest else sink.size
        finally:
            sink.drop()

    def _whole(self, source: str) -> Blob:
        future: Future[Blob] = asyncio.run_coroutine_threadsafe(super()._reach(source, True), self.loop)
        try:
            return future.result(self.limits.deadline_s)
        except TimeoutError as error:
            future.cancel()
            raise FetchError("deadline", f"{shown(source)}: not here after {self.limits.deadline_s:.0f} s") from error


def beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has. Whatever is wrong with it is told by who reads it whole."""
    try:
        if not path.is_file():
            return b"", 0
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES), path.stat().st_size
    except OSError:
        return b"", 0
