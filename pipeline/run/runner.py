"""What a run needs from the place where its chunks are worked on: this process or a Ray cluster.

The driver looks a runner up by name in `registry.RUNNERS`, so that a run without Ray never imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from pipeline.context import RunContext
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.files import ManifestFile
from pipeline.output.commit import CommitReceipt
from pipeline.run.lease import Lease
from pipeline.run.resume import HashedChunk
from pipeline.run.signals import StopSignals


class WorkInFlight(NamedTuple):
    """What workers do at the moment."""

    rows_preparing: int = 0
    rows_answering: int = 0
    replicas_starting: int = 0
    replicas_ready: int = 0


ShowWork = Callable[[WorkInFlight], None]


def ignore_work(work: WorkInFlight) -> None:
    """For a caller that does not show it."""


class Runner(Protocol):
    def connect(self, *, show_log: bool) -> AbstractContextManager[None]:
        """The runner can be used while this is open."""

    def describe_submission(self) -> Mapping[str, str]:
        """What `plan.json` says about the scheduler that started this run; empty if a person did."""

    def split_manifest(
        self, job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
    ) -> Iterable[HashedChunk]: ...

    def run_chunks(
        self,
        context: RunContext,
        chunks: ChunkTable,
        signals: StopSignals,
        show_work: ShowWork = ignore_work,
    ) -> Generator[CommitReceipt, None, None]:
        """Answer and commit the chunks. After a stop signal, only those that have begun are finished.

        The driver has written the job of the run into the output; workers on a cluster look for it there.
        """

    def export_lease_age(self, context: RunContext, lease: Lease) -> None:
        """Keep the metric `lease_age_seconds` up to date until the lease ends."""
