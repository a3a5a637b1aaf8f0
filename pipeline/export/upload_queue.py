"""Writes many small files of an export at once: a store answers each in its own time.

On a disk of this machine they are synced together, because syncing each takes ten times as long as writing it.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pipeline.output.store import OutputStore

THREADS = 16
MAX_WAITING = 4 * THREADS


class UploadQueue:
    """All files are safe when the block ends. An error of any stops the export."""

    def __init__(self, target: OutputStore):
        self.target, self.pool = target, ThreadPoolExecutor(1 if target.is_local else THREADS)
        self.waiting: deque[Future[None]] = deque()

    def add(self, name: str, data: bytes) -> None:
        if len(self.waiting) >= MAX_WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self.target.write_small_file, name, data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for upload in self.waiting:
                upload.result()
            self.target.sync_files()
