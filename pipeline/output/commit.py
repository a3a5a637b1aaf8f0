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

from pipeline.context import Work
from pipeline.output.arrow_tables import tables
from pipeline.output.store import Store
from pipeline.types import Outcome

NOTE = b"vlbatch"  # where a part's metadata says what else belongs to the commit


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker tells the driver about a chunk. `won` is false where another had committed it before."""

    key: str
    won: bool
    answered: int
    failed: int
    kinds: dict[str, int] = field(default_factory=dict)  # "stage/kind" -> rows
    examples: dict[str, str] = field(default_factory=dict)  # "stage/kind" -> one row's id and message, in a line
    vision_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cut_off: int = 0  # answers that ended with their budget
    retries: int = 0  # questions asked again
    seconds: dict[str, float] = field(default_factory=dict)  # of the workers: what their time went to


def parquet(table: pa.Table, note: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({NOTE: json.dumps(note)}), sink, compression="zstd")
    return bytes(sink.getvalue())


def note_of(part: bytes) -> dict[str, Any]:
    """What was written into it by `parquet`."""
    note: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(part)).metadata[NOTE])
    return note


def write(key: str, outcomes: Sequence[Outcome], work: Work, store: Store) -> Receipt:
    """Commit a chunk. Whoever comes second finds it done, and says so."""
    answered, failed = tables(outcomes, work)
    folder, letters = f"fp={work.fingerprint}", f"{key}-{uuid.uuid4().hex[:8]}.parquet"
    kinds = Counter(f"{s}/{k}" for s, k in zip(failed["stage"].to_pylist(), failed["kind"].to_pylist(), strict=True))
    if failed.num_rows:
        store.create(f"errors/{folder}/{letters}", parquet(failed, {"key": key}))
    note: dict[str, Any] = {"run": work.run, "errors": letters if failed.num_rows else None, "kinds": kinds}
    note |= {"answered": answered.num_rows, "failed": failed.num_rows}
    won = store.create(f"data/{folder}/{key}.parquet", parquet(answered, note))
    if not won:
        if failed.num_rows and note_of(store.read(f"data/{folder}/{key}.parquet"))["errors"] != letters:
            store.remove(f"errors/{folder}/{letters}")
        return replace(found(store, work.fingerprint, key), won=False)
    return replace(
        receipt(key, answered, note),
        examples={f"{row['stage']}/{row['kind']}": example(row) for row in failed.to_pylist()},
        retries=sum(row.attempts - 1 for _, row in outcomes),
    )


def found(store: Store, fingerprint: str, key: str) -> Receipt:
    """What is known of a chunk that another has committed, or whose receipt was lost."""
    part = pq.ParquetFile(io.BytesIO(store.read(f"data/fp={fingerprint}/{key}.parquet")))
    return receipt(key, part.read(["tokens", "finish"]), json.loads(part.schema_arrow.metadata[NOTE]))


def receipt(key: str, answered: pa.Table, note: Mapping[str, Any]) -> Receipt:
    rows = answered["tokens"].to_pylist()
    return Receipt(
        key,
        True,
        note["answered"],
        note["failed"],
        kinds=dict(note["kinds"]),
        vision_tokens=sum(row["vision"] for row in rows),
        output_tokens=sum(row["output"] for row in rows),
        prompt_tokens=sum(row["prompt"] for row in rows),
        cut_off=answered["finish"].to_pylist().count("length"),
    )


def example(letter: Mapping[str, Any]) -> str:
    """Of a traceback, what it ends with."""
    lines = letter["message"].strip().splitlines() or ["(no message)"]
    return f"{letter['id']}: {lines[-1]}"
