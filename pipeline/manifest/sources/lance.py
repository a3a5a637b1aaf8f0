"""Lance tables, with the extra `pylance`: the fragments of one version, without the rows that it deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.fetch.storage_clients import get_object_store_options
from pipeline.manifest.sources.base import Span, TableParts, TablePartSource, split_rows
from pipeline.registry import import_extra


class LanceSource(TablePartSource):
    @classmethod
    def is_table(cls, filesystem: Any, path: str) -> bool:
        return bool(filesystem.isdir(f"{path}/_versions"))

    @classmethod
    def list_parts(cls, url: str, choice: Mapping[str, str]) -> TableParts:
        try:
            table = open_table(url, int(choice["version"]) if "version" in choice else None)
            fragments = [fragment for fragment in table.get_fragments() if fragment.count_rows()]
        except (OSError, ValueError) as error:
            raise JobError(f"input.manifest: {url}: is not a Lance table that can be read ({error})") from error
        parts = [json.dumps({"version": table.version, "fragment": fragment.fragment_id}) for fragment in fragments]
        return TableParts(url, parts)

    @cached_property
    def fragment(self) -> Any:
        place = json.loads(self.part)
        return open_table(self.url, place["version"]).get_fragment(place["fragment"])

    def read_schema(self) -> pa.Schema:
        schema: pa.Schema = self.fragment.schema
        return schema.remove_metadata()

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return split_rows(self.estimate_rows(), rows_per_span)

    def estimate_rows(self) -> int:
        count: int = self.fragment.count_rows()
        return count

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        names = self.read_schema().names if columns is None else list(columns)
        rows: pa.Table = self.fragment.to_table(columns=names, offset=span[0], limit=span[1] - span[0])
        return rows.select(names).replace_schema_metadata(None)


def open_table(url: str, version: int | None) -> Any:
    lance = import_extra("lance", "pylance")
    place = url.removeprefix("file://")
    return lance.dataset(place, version=version, storage_options=get_object_store_options(url))
