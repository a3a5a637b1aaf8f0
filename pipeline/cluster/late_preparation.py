"""Prepares rows at the replica, where a chunk grew too heavy for one block.

The pool that prepares sends what it has, and the rest of the chunk as it was read. This is the slow way, for the few
chunks that are much heavier than the others; what is committed, and when, stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from pipeline.context import RunContext
from pipeline.job.spec import Job
from pipeline.media.decode import EXTRA_S_PER_FRAME
from pipeline.prepare import Preparer, cut_pieces
from pipeline.types import PreparedItem, SentItem
from pipeline.watchdog import Watchdog

HANG_MARGIN_S = 120.0  # fetching and decoding keep a row's deadline by themselves; a row that takes longer hangs


class LatePreparer:
    """Opened by the first chunk that needs it. Chunks take turns, so that one piece at a time is in memory."""

    def __init__(self, context: RunContext):
        self.context, self.turn = context, Lock()
        self.opened: tuple[Preparer, Watchdog] | None = None

    @contextmanager
    def prepare_pieces(self, items: Sequence[SentItem]) -> Iterator[Iterator[list[PreparedItem]]]:
        with self.turn:
            self.opened = self.opened or (Preparer(self.context), open_row_watchdog(self.context.job))
            preparer, watchdog = self.opened
            yield cut_pieces(watchdog.watch_steps(preparer.prepare_items(items)))


def split_prepared(items: Sequence[SentItem]) -> tuple[list[PreparedItem], Sequence[SentItem]]:
    """The rows up to the first that is to be prepared, and the others."""
    prepared: list[PreparedItem] = []
    for item, request in items:
        if request is None:
            break
        prepared.append((item, request))
    return prepared, items[len(prepared) :]


def open_row_watchdog(job: Job) -> Watchdog:
    return Watchdog(compute_row_timeout_s(job) + HANG_MARGIN_S, "preparing a row")


def compute_row_timeout_s(job: Job) -> float:
    """A row's deadline, and the extra time for every frame of a video in each of its media columns."""
    return job.limits.deadline_s + EXTRA_S_PER_FRAME * job.media.video.max_frames * max(1, len(job.input.media))
