"""The format `webdataset`: tar shards of at most a gigabyte, with the media of each row beside its answer.

The members of a row are its key and an ending: `json` has the columns of the table, the first medium has the ending of
its kind, and further ones have their number before it (`2.jpg`). Members have no times, so the same rows make the same
shards.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.media_files import find_extension, read_head
from pipeline.export.plain_values import encode_json, list_rows
from pipeline.export.split_files import SplitFiles, name_in_split, split_table

MAX_SHARD_BYTES = 10**9
LONGEST_PLAIN_KEY = 100


class WebDatasetExporter:
    can_partition, can_split, media_choices = False, True, ("copy", "none")

    def __init__(self, task: ExportTask):
        self.task = task

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        """Rows that ask the same, with other kept values, have keys of their own."""

        def name_file(shard: str) -> str:
            split, _, number = shard.partition("/")
            return name_in_split(split, f"{name}-{number}.tar")

        shard_numbers: dict[str, int] = {}
        with SplitFiles(self.task.target, name_file, open_shard) as files:
            for table in tables:
                for split, rows in split_table(table, self.task.options.splits):
                    for row, key in zip(list_rows(rows), name_rows(rows["id"].to_pylist()), strict=True):
                        number = shard_numbers.setdefault(split, 0)
                        shard = files.get_writer(f"{split}/{number:04}")
                        self.add_row(shard, key, row)
                        if shard.offset >= MAX_SHARD_BYTES:
                            files.upload_file(f"{split}/{number:04}")
                            shard_numbers[split] += 1
            return files.upload()

    def add_row(self, shard: tarfile.TarFile, key: str, row: Mapping[str, Any]) -> None:
        if self.task.options.media == "copy":
            first_pages = {
                medium["uri"].partition("#page=")[0]: index
                for index, medium in reversed([*enumerate(row["media"] or [])])
            }
            for number, index in enumerate(sorted(first_pages.values()), 1):
                if blob := self.task.media_files.open_file(row, index, self.task.remarks):
                    with blob:
                        ending = find_extension(read_head(blob))
                        name = f"{key}.{ending}" if number == 1 else f"{key}.{number}.{ending}"
                        add_member(shard, name, blob.path or blob.data or b"")
        add_member(shard, f"{key}.json", encode_json(row).encode())

    def finish(self, files: Sequence[str]) -> None:
        """Shards need nothing beside them."""


@contextmanager
def open_shard(path: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        yield shard


def add_member(shard: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    header = tarfile.TarInfo(name)
    if isinstance(content, Path):
        header.size = content.stat().st_size
        with open(content, "rb") as file:
            shard.addfile(header, file)
    else:
        header.size = len(content)
        shard.addfile(header, io.BytesIO(content))
    shard.members.clear()  # type: ignore[attr-defined]  # which would keep a million headers in memory


def name_rows(row_ids: Iterable[str]) -> Iterator[str]:
    """The key of each row of a chunk. An id stands twice in it where rows ask the same."""
    counts: dict[str, int] = {}
    for row_id in row_ids:
        count = counts[row_id] = counts.get(row_id, 0) + 1
        yield name_row(row_id) if count == 1 else f"{name_row(row_id)}~{count}"


def name_row(row_id: str) -> str:
    """Readers end a key at its first dot.

    >>> name_row("scan-7"), name_row("a/b.png")
    ('scan-7', 'a_b_png~7f336a151c')
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", row_id)[:LONGEST_PLAIN_KEY]
    return name if name == row_id else f"{name}~{hashlib.blake2b(row_id.encode(), digest_size=5).hexdigest()}"
