"""Chooses the rows of a chunk by what the first rows of a manifest weigh when they are prepared, and by its size.

As many rows travel together as weigh a bound. They are a chunk, or a slice of one in a manifest that would make more
than some ten thousand parts. Only the first run of a question chooses. It notes the numbers with the question, so that
later runs cut the same chunks whatever is added to the manifest. An output without that note keeps the chunks that its
settings give.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from pipeline.context import RunContext
from pipeline.fetch.header_fetcher import open_header_fetcher
from pipeline.job.spec import Job
from pipeline.manifest.chunks import TARGET_CHUNK_BYTES, compute_light_rows, compute_slice_rows, split_open_file
from pipeline.manifest.files import ManifestFile, build_unreadable_error, get_store_error_types
from pipeline.manifest.row_reader import RowReader
from pipeline.media.decode import build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.output.dataset import Dataset
from pipeline.prepare import Preparer, weigh_row
from pipeline.run.progress import format_count
from pipeline.types import ReadItem

SAMPLED_FILES, SAMPLED_ROWS = 8, 32  # the first rows of files that are evenly spread
MIN_PARTS, MAX_SLICES = 10_000, 12  # chunks have more than one slice where there are more parts than that


class ChunkSize(NamedTuple):
    rows: int
    slice_rows: int
    reason: str
    is_unusual: bool = False  # not what the settings of media let expect

    def describe(self) -> str:
        slices = f" in slices of {self.slice_rows:,}" if self.slice_rows < self.rows else ""
        return f"chunks of {format_count(self.rows, 'row')}{slices}: {self.reason}"

    def apply_to(self, context: RunContext) -> RunContext:
        slice_rows = self.slice_rows if self.slice_rows < self.rows else None
        return replace(context, job=set_output(context.job, chunk_rows=self.rows, slice_rows=slice_rows))


class FirstRows(NamedTuple):
    """What the first rows tell."""

    weights: list[int]  # the bytes of those that can be prepared, by the headers of their media
    total: int  # rows of the manifest, roughly


def settle_chunk_size(context: RunContext, manifest_files: Sequence[ManifestFile], dataset: Dataset) -> ChunkSize:
    """The size that a run would use now."""
    return find_chunk_size(context.job, dataset) or choose_chunk_size(context, manifest_files)


def find_chunk_size(job: Job, dataset: Dataset) -> ChunkSize | None:
    """What the job says, or what the output was begun with; None where nothing is begun."""
    if job.output.chunk_rows:
        return ChunkSize(job.output.chunk_rows, compute_slice_rows(job), "output.chunk_rows")
    if not dataset.has_question():
        return None
    noted = dataset.read_chunk_size()
    rows = noted.chunk_rows or compute_light_rows(job)
    return ChunkSize(rows, job.output.slice_rows or noted.slice_rows or rows, "as this output was begun")


def choose_chunk_size(context: RunContext, manifest_files: Sequence[ManifestFile]) -> ChunkSize:
    weights, total = look_at_first_rows(context, manifest_files)
    rows = light = context.job.output.slice_rows or compute_light_rows(context.job)
    reasons = []
    if sum(weights) and (heavy := max(1, TARGET_CHUNK_BYTES * len(weights) // sum(weights))) < light:
        rows = heavy
        mean = sum(weights) / len(weights) / 2**20
        reasons.append(f"the first rows weigh {mean:,.1f} MiB each when they are prepared")
    slices = count_slices(total, rows)
    if slices > 1:
        reasons.append(f"the manifest has about {total:,} rows")
    return ChunkSize(slices * rows, rows, ", and ".join(reasons) or "by the settings of media", bool(reasons))


def count_slices(total_rows: int, slice_rows: int) -> int:
    """Of a chunk."""
    return max(1, min(MAX_SLICES, total_rows // (slice_rows * MIN_PARTS)))


def look_at_first_rows(context: RunContext, manifest_files: Sequence[ManifestFile]) -> FirstRows:
    files = manifest_files[:: -(-len(manifest_files) // SAMPLED_FILES)]
    job = set_output(context.job, chunk_rows=SAMPLED_ROWS // len(files), slice_rows=None)
    job = job.model_copy(update={"input": job.input.model_copy(update={"version": "none"})})
    decoder = HeaderDecoder(build_decode_limits(job))
    sampled = replace(context, job=job)
    with closing(Preparer(sampled, fetcher=open_header_fetcher(job), decoder=decoder)) as preparer:
        first_items, counts = zip(*(read_first_items(preparer, file) for file in files), strict=True)
        rows = preparer.prepare_items(list(chain(*first_items)))
        weights = [weight for row in rows if (weight := weigh_row(row))]
    return FirstRows(weights, sum(counts) * len(manifest_files) // len(files))


def read_first_items(preparer: Preparer, file: ManifestFile) -> tuple[list[ReadItem], int]:
    """The rows of the first chunk of a file, and how many rows it has, roughly."""
    job, schema_prompt = preparer.context.job, preparer.context.schema_prompt
    try:
        reader = RowReader(job, file, schema_prompt)
        chunks = [chunk for chunk, _ in islice(split_open_file(job, reader), 1)]
        return [item for chunk in chunks for item in preparer.read_items(chunk)], reader.source.estimate_rows()
    except get_store_error_types(file.url) as error:
        raise build_unreadable_error(file, error) from error


def set_output(job: Job, **values: int | None) -> Job:
    return job.model_copy(update={"output": job.output.model_copy(update=values)})
