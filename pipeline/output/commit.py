"""Outcomes of a chunk -> one object under the chunk's key. Creating that object is the commit.

Dead letters are written just before, under a name that the commit's metadata holds: whoever loses the race to
create the object has letters that nobody reads, and takes them back. Nothing is ever overwritten.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.context import RunContext
from pipeline.output.arrow_tables import build_tables
from pipeline.output.store import OutputStore
from pipeline.types import Outcome

COMMIT_NOTE_KEY = b"vlbatch"  # where a part's metadata says what else belongs to the commit


@dataclass(frozen=True, slots=True)
class CommitReceipt:
    """What a worker tells the driver about a chunk. `won` is false where another had committed it before."""

    part_name: str
    committed_first: bool
    answered: int
    failed: int
    failure_counts: dict[str, int] = field(default_factory=dict)  # "stage/kind" -> rows
    failure_examples: dict[str, str] = field(
        default_factory=dict
    )  # "stage/kind" -> one row's id and message, in a line
    vision_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cut_off: int = 0  # answers that ended with their budget
    retries: int = 0  # questions asked again
    worker_seconds: dict[str, float] = field(default_factory=dict)  # of the workers: what their time went to


def encode_part(table: pa.Table, note: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({COMMIT_NOTE_KEY: json.dumps(note)}), sink, compression="zstd")
    return bytes(sink.getvalue())


def read_commit_note(part: bytes) -> dict[str, Any]:
    """What was written into it by `parquet`."""
    note: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(part)).metadata[COMMIT_NOTE_KEY])
    return note


def commit_chunk(part_name: str, outcomes: Sequence[Outcome], context: RunContext, store: OutputStore) -> CommitReceipt:
    """Commit a chunk. Whoever comes second finds it done, and says so."""
    answered, failed = build_tables(outcomes, context)
    folder, letters = f"fp={context.fingerprint}", f"{part_name}-{uuid.uuid4().hex[:8]}.parquet"
    kinds = Counter(f"{s}/{k}" for s, k in zip(failed["stage"].to_pylist(), failed["kind"].to_pylist(), strict=True))
    if failed.num_rows:
        store.create_object(f"errors/{folder}/{letters}", encode_part(failed, {"key": part_name}))
    note: dict[str, Any] = {"run": context.run_id, "errors": letters if failed.num_rows else None, "kinds": kinds}
    note |= {"answered": answered.num_rows, "failed": failed.num_rows}
    won = store.create_object(f"data/{folder}/{part_name}.parquet", encode_part(answered, note))
    if not won:
        if (
            failed.num_rows
            and read_commit_note(store.read_object(f"data/{folder}/{part_name}.parquet"))["errors"] != letters
        ):
            store.delete_object(f"errors/{folder}/{letters}")
        return replace(read_receipt(store, context.fingerprint, part_name), committed_first=False)
    return replace(
        build_receipt(part_name, answered, note),
        failure_examples={f"{row['stage']}/{row['kind']}": format_failure_example(row) for row in failed.to_pylist()},
        retries=sum(row.attempts - 1 for _, row in outcomes),
    )


def read_receipt(store: OutputStore, fingerprint: str, part_name: str) -> CommitReceipt:
    """What is known of a chunk that another has committed, or whose receipt was lost."""
    part = pq.ParquetFile(io.BytesIO(store.read_object(f"data/fp={fingerprint}/{part_name}.parquet")))
    return build_receipt(
        part_name, part.read(["tokens", "finish"]), json.loads(part.schema_arrow.metadata[COMMIT_NOTE_KEY])
    )


def build_receipt(part_name: str, answered: pa.Table, note: Mapping[str, Any]) -> CommitReceipt:
    rows = answered["tokens"].to_pylist()
    return CommitReceipt(
        part_name,
        True,
        note["answered"],
        note["failed"],
        failure_counts=dict(note["kinds"]),
        vision_tokens=sum(row["vision"] for row in rows),
        output_tokens=sum(row["output"] for row in rows),
        prompt_tokens=sum(row["prompt"] for row in rows),
        cut_off=answered["finish"].to_pylist().count("length"),
    )


def format_failure_example(failed_row: Mapping[str, Any]) -> str:
    """Of a traceback, what it ends with."""
    lines = failed_row["message"].strip().splitlines() or ["(no message)"]
    return f"{failed_row['id']}: {lines[-1]}"
