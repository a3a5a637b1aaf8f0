"""Delta tables, with the extra `deltalake`: the Parquet files of one version, without the rows that it deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobError
from pipeline.fetch.storage_clients import get_object_store_options
from pipeline.manifest.sources.base import TableParts
from pipeline.manifest.sources.parquet_part import ParquetPartSource, check_file_place, describe_part
from pipeline.registry import import_extra

COLUMN_MAPPING = "delta.columnMapping.mode"


class DeltaSource(ParquetPartSource):
    @classmethod
    def is_table(cls, filesystem: Any, path: str) -> bool:
        return bool(filesystem.isdir(f"{path}/_delta_log"))

    @classmethod
    def list_parts(cls, url: str, choice: Mapping[str, str]) -> TableParts:
        deltalake = import_extra("deltalake", "deltalake")
        place = url.removeprefix("file://")
        try:
            version = int(choice["version"]) if "version" in choice else None
            table = deltalake.DeltaTable(place, version=version, storage_options=get_object_store_options(url))
            mapping = table.metadata().configuration.get(COLUMN_MAPPING, "none")
            actions = pa.table(table.get_add_actions()).to_pylist()
            masks = read_keep_masks(table)
        except (deltalake.exceptions.DeltaError, OSError, ValueError) as error:
            raise JobError(f"input.manifest: {url}: is not a Delta table that can be read ({error})") from error
        if mapping != "none":
            advice = "write it once more without, with another program"
            raise JobError(
                f"input.manifest: {url}: has columns under other names in its files ({COLUMN_MAPPING}); {advice}"
            )
        schema = pa.schema([field.with_nullable(True) for field in pa.schema(table.schema().to_arrow())])
        parts = []
        for file, action in zip(table.file_uris(), actions, strict=True):
            if not unquote(unquote(file)).endswith(unquote(unquote(action["path"]))):
                raise JobError(f"input.manifest: {url}: its log lists {file} where {action['path']} is expected")
            mask = masks.pop(unquote(file.removeprefix("file://")), None)
            parts.append(
                describe_part(
                    check_file_place(url, file),
                    schema,
                    constants=action.get("partition"),
                    keep_mask=mask,
                )
            )
        if masks:
            raise JobError(f"input.manifest: {url}: deletes rows of {min(masks)}, which is none of its files")
        return TableParts(url, sorted(parts))


def read_keep_masks(table: Any) -> dict[str, NDArray[np.bool_]]:
    """Which rows of each file are kept, where a deletion vector deletes some."""
    masks = {}
    for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()):
        for path, mask in zip(batch["filepath"].to_pylist(), batch["selection_vector"], strict=True):
            masks[unquote(path.removeprefix("file://"))] = mask.values.to_numpy(zero_copy_only=False)
    return masks
