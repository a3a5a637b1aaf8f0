"""Chooses the rows of a chunk by what the first rows of a manifest weigh when they are prepared.

Only the first run of a question chooses. It notes the number with the question, so that later runs cut the same chunks
whatever is added to the manifest. An output without that note keeps the chunks that its settings give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from pipeline.context import RunContext
from pipeline.fetch.header_fetcher import open_header_fetcher
from pipeline.job.spec import Job
from pipeline.manifest.chunks import TARGET_CHUNK_BYTES, Chunk, compute_chunk_rows
from pipeline.manifest.files import ManifestFile
from pipeline.media.decode import build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.output.dataset import Dataset
from pipeline.prepare import Preparer, weigh_row
from pipeline.run.progress import format_count
from pipeline.run.resume import split_in_process

SAMPLED_FILES, SAMPLED_ROWS = 8, 32  # the first rows of files that are evenly spread


class ChunkSize(NamedTuple):
    rows: int
    reason: str
    is_lowered: bool = False  # because rows are heavier than settings let expect

    def describe(self) -> str:
        return f"chunks of {format_count(self.rows, 'row')}: {self.reason}"

    def apply_to(self, context: RunContext) -> RunContext:
        return replace(context, job=set_chunk_rows(context.job, self.rows))


def settle_chunk_size(context: RunContext, manifest_files: Sequence[ManifestFile], dataset: Dataset) -> ChunkSize:
    """The size that a run would use now."""
    return find_chunk_size(context.job, dataset) or choose_chunk_size(context, manifest_files)


def find_chunk_size(job: Job, dataset: Dataset) -> ChunkSize | None:
    """What the job says, or what the output was begun with; None where nothing is begun."""
    if job.output.chunk_rows:
        return ChunkSize(job.output.chunk_rows, "output.chunk_rows")
    if not dataset.has_question():
        return None
    return ChunkSize(dataset.read_chunk_rows() or compute_chunk_rows(job), "as this output was begun")


def choose_chunk_size(context: RunContext, manifest_files: Sequence[ManifestFile]) -> ChunkSize:
    rows = compute_chunk_rows(context.job)
    weights = weigh_first_rows(context, manifest_files)
    heavy = max(1, TARGET_CHUNK_BYTES * len(weights) // (sum(weights) or 1))
    if not sum(weights) or heavy >= rows:
        return ChunkSize(rows, "by the settings of media")
    mean = sum(weights) / len(weights) / 2**20
    return ChunkSize(heavy, f"the first rows weigh {mean:,.1f} MiB each when they are prepared", is_lowered=True)


def weigh_first_rows(context: RunContext, manifest_files: Sequence[ManifestFile]) -> list[int]:
    """The bytes of rows that can be prepared, by the headers of their media."""
    files = manifest_files[:: -(-len(manifest_files) // SAMPLED_FILES)]
    job = set_chunk_rows(context.job, SAMPLED_ROWS // len(files))
    job = job.model_copy(update={"input": job.input.model_copy(update={"version": "none"})})
    decoder = HeaderDecoder(build_decode_limits(job))
    sampled = replace(context, job=job)
    with closing(Preparer(sampled, fetcher=open_header_fetcher(job), decoder=decoder)) as preparer:
        items = [item for chunk in read_first_chunks(sampled, files) for item in preparer.read_items(chunk)]
        return [weight for row in preparer.prepare_items(items) if (weight := weigh_row(row))]


def read_first_chunks(context: RunContext, files: Sequence[ManifestFile]) -> Iterator[Chunk]:
    for file in files:
        for chunk, _ in split_in_process(context.job, [file], context.schema_prompt):
            yield chunk
            break


def set_chunk_rows(job: Job, rows: int) -> Job:
    return job.model_copy(update={"output": job.output.model_copy(update={"chunk_rows": rows})})
