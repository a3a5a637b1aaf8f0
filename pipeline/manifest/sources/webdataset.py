"""WebDataset tars: the consecutive members whose names are equal up to the first dot are one row.

Spans are byte ranges, so a worker reads its own part of a tar and nothing before it. Planning reads the headers of the
members; the members themselves are read where a column is asked for. The column `media` holds all media of a row, and
each ending has a column of its own (`jpg`, `seg.png`, `json`), if one of the first rows has it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.manifest.sources.base import Source, Span
from pipeline.manifest.sources.folder import list_media_endings

MEMBER_NAME = re.compile(r"(?:\./)?((?:.*/)?[^/.]+)\.([^/]+)")  # the key and the ending
TEXT_ENDINGS = (
    "json",
    "txt",
    "text",
    "cls",
    "cls2",
    "csv",
    "xml",
    "html",
    "md",
    "id",
    "index",
    "caption",
    "transcript",
)
SCHEMA_ROWS = 8
REQUEST_BYTES, SMALL_REQUEST_BYTES = 2**20, 2**16  # a request takes about as long as a mebibyte
MEDIA_TYPE = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TAR_BLOCK_BYTES = 512


class Member(NamedTuple):
    name: str
    start: int  # of its content
    size: int


class Sample(NamedTuple):
    """A row: where its members are."""

    key: str
    start: int
    members: dict[str, Member]  # by ending


class WebDatasetSource(Source):
    file_endings = (".tar",)
    is_found_in_folders = False  # a folder of media may hold an archive of them
    default_media, default_id = ("media",), "path"
    has_ids_of_file = True

    def __init__(self, url: str):
        super().__init__(url)
        self.last_indexed: tuple[Span, list[Sample]] = ((0, 0), [])  # which planning reads next
        self.tar_end = 0  # known when its last header was read

    def read_schema(self) -> pa.Schema:
        endings = dict.fromkeys(ending for sample in self.first_samples for ending in sample.members)
        types = {ending: pa.string() if is_text(ending) else pa.binary() for ending in endings}
        return pa.schema([("path", pa.string()), ("__key__", pa.string()), ("media", MEDIA_TYPE), *types.items()])

    @cached_property
    def first_samples(self) -> list[Sample]:
        with self.open_file(REQUEST_BYTES) as file:
            samples = list(islice(self.walk_samples(file, 0), SCHEMA_ROWS))
        if not samples:
            raise JobError(f"{self.url}: holds no file with a name such as 0001.jpg")
        return samples

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        first_sizes = [member.size for sample in self.first_samples for member in sample.members.values()]
        has_large_members = sum(first_sizes) > REQUEST_BYTES * len(self.first_samples)
        with self.open_file(SMALL_REQUEST_BYTES if has_large_members else REQUEST_BYTES) as file:
            samples = self.walk_samples(file, 0)
            following = next(samples, None)
            while following:
                span_samples = [following, *islice(samples, rows_per_span - 1)]
                following = next(samples, None)
                end = following.start if following else self.tar_end
                self.last_indexed = ((span_samples[0].start, end), span_samples)
                yield self.last_indexed[0]

    def estimate_rows(self) -> int:
        first, last = self.first_samples[0].start, self.first_samples[-1].start
        filesystem, path = fsspec.core.url_to_fs(self.url)
        rows_per_byte = (len(self.first_samples) - 1) / max(1, last - first)
        return max(len(self.first_samples), int(filesystem.size(path) * rows_per_byte))

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        schema = self.read_schema()
        selected = pa.schema([schema.field(name) for name in columns]) if columns is not None else schema
        reads_media = any(field.type in (MEDIA_TYPE, pa.binary()) for field in selected)
        with self.open_file(REQUEST_BYTES if reads_media else SMALL_REQUEST_BYTES) as file:
            if self.last_indexed[0] != span:
                self.last_indexed = span, list(self.walk_samples(file, *span))
            rows = [self.read_row(file, sample, selected.names) for sample in self.last_indexed[1]]
        return pa.Table.from_pylist(rows, schema=selected)

    def read_row(self, file: Any, sample: Sample, columns: Sequence[str]) -> dict[str, Any]:
        return {name: self.read_cell(file, sample, name) for name in columns}

    def read_cell(self, file: Any, sample: Sample, column: str) -> Any:
        if column == "path":  # keys are often numbers that start again in each tar
            return f"{self.url.rpartition('/')[2]}/{sample.key}"
        if column == "__key__":
            return sample.key
        if column == "media":
            media = (member for ending, member in sample.members.items() if is_media(ending))
            return [{"bytes": read_member(file, member), "path": member.name} for member in media]
        if column not in sample.members:
            return None
        content = read_member(file, sample.members[column])
        try:
            return content.decode() if is_text(column) else content
        except UnicodeDecodeError as error:
            raise JobError(
                f"{self.url}: {sample.members[column].name} is not text in UTF-8 ({error.reason})"
            ) from error

    def walk_samples(self, file: Any, start: int, end: float = float("inf")) -> Iterator[Sample]:
        """The rows whose headers are in a range, from the headers alone."""
        sample: Sample | None = None
        for header in self.walk_headers(file, start, end):
            match = MEMBER_NAME.fullmatch(header.name)
            if not match or not header.isreg():
                continue
            key, ending = match[1], match[2].lower()
            if sample is None or sample.key != key or ending in sample.members:
                if sample:
                    yield sample
                sample = Sample(key, header.offset, {})
            sample.members[ending] = Member(header.name.rpartition("/")[2], header.offset_data, header.size)
        if sample:
            yield sample

    def walk_headers(self, file: Any, start: int, end: float) -> Iterator[tarfile.TarInfo]:
        file.seek(start)
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is closed elsewhere
            header = archive.next()
            while header:
                archive.members.clear()  # type: ignore[attr-defined]  # which would keep a million headers
                yield header
                if archive.offset >= end:
                    return
                header = archive.next()
            self.tar_end = archive.offset
            file.seek(archive.offset)
            if file.read(TAR_BLOCK_BYTES).strip(b"\0"):
                raise tarfile.ReadError(f"there is no header at byte {archive.offset:,}")
        except tarfile.TarError as error:
            raise JobError(f"{self.url}: is not a tar archive, or not a whole one ({error})") from error

    @contextmanager
    def open_file(self, request_bytes: int) -> Iterator[Any]:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        caching = {} if "file" in filesystem.protocol else {"block_size": request_bytes, "cache_type": "readahead"}
        with filesystem.open(path, "rb", **caching) as file:
            yield file


def read_member(file: Any, member: Member) -> bytes:
    file.seek(member.start)
    content: bytes = file.read(member.size)
    return content


def is_text(ending: str) -> bool:
    """
    >>> is_text("json"), is_text("meta.json"), is_text("npy")
    (True, True, False)
    """
    return ending.rpartition(".")[2] in TEXT_ENDINGS


def is_media(ending: str) -> bool:
    return f".{ending}".endswith(list_media_endings())
