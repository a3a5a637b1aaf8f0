"""Commits the rows of a chunk: creating the object of its part is the commit, and nothing is ever overwritten.

Dead letters are written first, and the part's commit note names their file. If two workers commit the same chunk, the
second finds the part there, deletes the dead letters that it wrote, and reports what the first one committed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.context import RunContext
from pipeline.manifest.row_keys import hash_row_keys, hash_rows
from pipeline.output.arrow_tables import build_tables
from pipeline.output.dataset import COMMIT_NOTE_KEY, Dataset
from pipeline.output.listing import NO_INFO, ObjectInfo
from pipeline.output.part_index import hash_part_rows
from pipeline.types import NO_TOKENS, Outcome, TokenCounts, add_counts


class FailedRow(NamedTuple):
    """What the driver is told about a dead letter."""

    id: str
    stage: str
    kind: str
    message: str

    def format_example(self) -> str:
        """The row's id and the last line of its message, which may be a traceback."""
        lines = self.message.strip().splitlines() or ["(no message)"]
        row_id = re.sub(r"\s", " ", self.id)
        return f"{row_id}: {lines[-1]}"


@dataclass(frozen=True, slots=True)
class CommitReceipt:
    """What a worker tells the driver about a chunk."""

    part_name: str
    committed_first: bool  # False if another worker had committed the chunk before
    answered: int
    failed: int
    failure_counts: dict[str, int] = field(default_factory=dict)  # by "stage/kind"
    failed_rows: tuple[FailedRow, ...] = ()
    part_info: ObjectInfo = NO_INFO
    note: Mapping[str, Any] = field(default_factory=dict)  # that the part was committed with
    row_hashes: bytes = b""  # of the answered rows, see hash_row_keys
    tokens: TokenCounts = NO_TOKENS  # of all replies
    discarded_tokens: TokenCounts = NO_TOKENS  # of these, of replies that are in no row
    cut_off: int = 0  # answers that ended with their token budget
    retries: int = 0  # requests that were repeated
    worker_seconds: dict[str, float] = field(default_factory=dict)  # the workers' time by activity


class SettledRows(NamedTuple):
    """Rows of a chunk that are answered or have failed, and are not committed yet."""

    answered: pa.Table
    failed: pa.Table
    discarded_tokens: TokenCounts
    retries: int
    worker_seconds: Mapping[str, float]


def settle_rows(
    outcomes: Sequence[Outcome], context: RunContext, worker_seconds: Mapping[str, float] = MappingProxyType({})
) -> SettledRows:
    answered, failed = build_tables(outcomes, context)
    return SettledRows(
        answered,
        failed,
        add_counts(NO_TOKENS, *(row.discarded_tokens for _, row in outcomes)),
        sum(row.attempts - 1 for _, row in outcomes),
        worker_seconds,
    )


def join_rows(slices: Sequence[SettledRows]) -> SettledRows:
    seconds: Counter[str] = Counter()
    for rows in slices:
        seconds.update(rows.worker_seconds)
    return SettledRows(
        pa.concat_tables([rows.answered for rows in slices]),
        pa.concat_tables([rows.failed for rows in slices]),
        add_counts(*(rows.discarded_tokens for rows in slices)),
        sum(rows.retries for rows in slices),
        seconds,
    )


def name_rows(answered: pa.Table) -> str:
    """The name of a chunk of these rows."""
    return hash_rows(
        hash_row_keys(list(zip(answered["id"].to_pylist(), answered["question"].to_pylist(), strict=True)))
    )


def commit_chunk(
    part_name: str,
    rows: SettledRows,
    context: RunContext,
    dataset: Dataset,
    check_allowed: Callable[[], object],
) -> CommitReceipt:
    """Commit a chunk. `check_allowed` is called before each attempt to write, and raises if another run took over."""
    answered, failed = rows.answered, rows.failed
    failed_rows = list_failed_rows(failed)
    letters = dataset.write_dead_letters(part_name, failed, check_allowed) if failed_rows else None
    note = {
        "run": context.run_id,
        "epoch": context.lease_epoch,
        "errors": letters,
        "kinds": Counter(f"{row.stage}/{row.kind}" for row in failed_rows),
        "answered": answered.num_rows,
        "failed": failed.num_rows,
        "discarded": rows.discarded_tokens,
        "tokens": count_tokens(answered),
    }
    if not dataset.commit_part(part_name, answered, note, check_allowed):
        if letters and dataset.read_footer(part_name).note["errors"] != letters:
            dataset.delete_dead_letters(letters)
        return replace(read_receipt(dataset, part_name), committed_first=False)
    return replace(
        build_receipt(part_name, answered, note, failed_rows, dataset.read_info(part_name)),
        retries=rows.retries,
    )


def read_receipt(dataset: Dataset, part_name: str) -> CommitReceipt:
    """Rebuild the receipt of a committed chunk that another worker wrote or whose receipt was lost."""
    answered = dataset.read_part(part_name, ["id", "question", "tokens", "finish"])
    note = json.loads(answered.schema.metadata[COMMIT_NOTE_KEY])
    letters = note["errors"]
    failed_rows = list_failed_rows(dataset.read_dead_letters(letters, list(FailedRow._fields))) if letters else ()
    return build_receipt(part_name, answered, note, failed_rows, dataset.read_info(part_name))


def count_tokens(answered: pa.Table) -> TokenCounts:
    return add_counts(NO_TOKENS, *(TokenCounts(**row) for row in answered["tokens"].to_pylist()))


def list_failed_rows(dead_letters: pa.Table) -> tuple[FailedRow, ...]:
    return tuple(FailedRow(**row) for row in dead_letters.select(list(FailedRow._fields)).to_pylist())


def build_receipt(
    part_name: str, answered: pa.Table, note: Mapping[str, Any], failed_rows: tuple[FailedRow, ...], info: ObjectInfo
) -> CommitReceipt:
    discarded = TokenCounts(*note.get("discarded", ()))  # earlier versions did not note them
    return CommitReceipt(
        part_name,
        True,
        note["answered"],
        note["failed"],
        failure_counts=dict(note["kinds"]),
        failed_rows=failed_rows,
        part_info=info,
        note=note,
        row_hashes=hash_part_rows(answered).tobytes(),
        tokens=add_counts(count_tokens(answered), discarded),
        discarded_tokens=discarded,
        cut_off=answered["finish"].to_pylist().count("length"),
    )
