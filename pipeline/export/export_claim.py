"""Says in `_export.json` what a folder is an export of, and refuses a folder that holds something else."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import OutputError
from pipeline.export.base import Exporter, ExportTask
from pipeline.export.export_sources import AnswerReader, hash_sources
from pipeline.export.row_changes import RowChanges
from pipeline.export.table_appender import TableAppender
from pipeline.output.arrow_tables import describe_column

DEFAULT_FORMAT = "table"
HIDDEN = ("sources", "columns")  # in messages


def claim_target(
    exporter: Exporter, task: ExportTask, format_name: str, reader: AnswerReader, changes: RowChanges
) -> None:
    """Create `_export.json`. Refuse a folder that holds another export or something else."""
    target, is_growing = task.target, isinstance(exporter, TableAppender)
    entries = target.list_top_entries() - (exporter.own_entries if isinstance(exporter, TableAppender) else set())
    if entries and "_export.json" not in entries:
        raise OutputError(f"{target.path} holds {min(entries)} and is no export; export to an empty folder")
    sources_hash, part_count, byte_count = hash_sources(reader.digest, reader.sources.identify())
    claim: dict[str, Any] = {
        "fingerprint": task.context.fingerprint,
        "rows_per_file": task.options.rows_per_file,
        "partition_by": list(task.options.partition_by),
        "parts": part_count,
        "bytes": byte_count,
        "sources": sources_hash,
        "columns": {field.name: {"type": str(field.type), "is": describe_column(field.name)} for field in task.columns},
    }
    if format_name != DEFAULT_FORMAT:  # exports of earlier versions are tables and name no format
        claim["format"] = format_name
    claim |= {**changes.identify(), **task.options.identify()}
    if is_growing:  # by more parts
        claim = {name: value for name, value in claim.items() if name not in ("parts", "bytes", "sources")}
    if target.create_object("_export.json", json.dumps(claim, indent=2).encode()):
        return
    defaults = {"format": DEFAULT_FORMAT, **dict.fromkeys(("calibration", "truth", "where", "split", "media"))}
    before = {**defaults, **json.loads(target.read_object("_export.json"))}
    now = {**defaults, **claim}
    differences = [
        (name, before.get(name), now[name])
        for name in now
        if before.get(name) != now[name] and (name != "columns" or is_growing)
    ]
    if differences:
        shown = ", ".join(f"{name}: was {old}, is {new}" for name, old, new in differences if name not in HIDDEN)
        raise OutputError(
            f"{target.path} holds another export ({shown or 'other answers or kept values'}); export to another "
            "folder, for instance one a day, or delete this one"
        )
