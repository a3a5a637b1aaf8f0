"""What is wrong with the rows of a manifest -> chunks that ask them again.

The letters of a chunk that no longer stands in the manifest count for nothing: the rows of it that are still asked
are asked by another chunk, which has an answer or letters of its own. The other way round, a row can be wrong in its
chunk and answered in a part that was written later for another form of the manifest; that answer counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from pipeline.context import RunContext
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.rows import hash_row_keys
from pipeline.output import dead_letters
from pipeline.output.dataset import Dataset, get_part_of_dead_letters, split_part_name
from pipeline.output.dead_letters import DeadLetter
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.run.dedup import HashBuckets
from pipeline.run.progress import Say
from pipeline.run.resume import ResumePlan, find_answered_rows
from pipeline.types import RetryHistory


@dataclass(frozen=True, slots=True)
class RetryScope:
    """Where to look for the rows of a manifest that failed, and for answers that they have after all."""

    failed_chunks: Mapping[str, Sequence[str]]  # its chunks with letters, and the parts of each
    removed_chunks: Sequence[str]  # chunks with letters that it has no more
    later_parts: Sequence[
        str
    ]  # parts of other chunks, not older than the oldest with letters: nobody skipped what they hold


def find_retry_scope(resume_plan: ResumePlan, context: RunContext, store: OutputStore) -> RetryScope:
    dataset = Dataset(store, context.fingerprint)
    written = dataset.list_dead_letters()
    there = dataset.list_parts() if written else {}
    names, failing = {chunk.name for chunk in resume_plan.chunks}, dead_letters.find_failed_chunks(there, written)
    failed = {name: parts for name, parts in failing.items() if name in names}
    if not failed:
        return RetryScope({}, [*failing], ())
    first = min(there[name].modified_at or 0 for name in failed)
    parts = ((part, info.modified_at) for part, info in there.items())
    since = sorted(part for part, at in parts if (at is None or at >= first) and split_part_name(part)[0] not in names)
    return RetryScope(failed, sorted(failing.keys() - names), since)


def read_failed_rows(retry_scope: RetryScope, store: OutputStore, fingerprint: str) -> Iterator[DeadLetter]:
    """The rows of the manifest that failed and have no answer, chunk by chunk."""
    dataset, answered = Dataset(store, fingerprint), set[int]()
    if retry_scope.later_parts:
        with HashBuckets() as rows:
            for _, some in groupby(
                dead_letters.read_unresolved_letters(dataset, retry_scope.failed_chunks),
                lambda letter: letter.key,
            ):
                rows.add_hashes(hash_row_keys([(letter.id, letter.question) for letter in some]))
            answered = set(find_answered_rows(retry_scope.later_parts, rows, store, fingerprint).tolist())
    for at, letter in enumerate(dead_letters.read_unresolved_letters(dataset, retry_scope.failed_chunks)):
        if at not in answered:
            yield letter


def add_retries(
    resume_plan: ResumePlan, retry_scope: RetryScope, failed_rows: Sequence[DeadLetter], kind_filter: str, say: Say
) -> ResumePlan:
    """The plan, and in it those of the failed rows that are of a kind once more; empty means of any kind."""
    chunks = build_retry_chunks(
        resume_plan.chunks, [letter for letter in failed_rows if letter.is_of_kind(kind_filter)], retry_scope
    )
    rows = sum(chunk.asked_row_count for chunk in chunks)
    if chunks or not failed_rows:
        say(f"{rows:,} of {len(failed_rows):,} failed rows are asked again")
    else:
        kinds = Counter(f"{letter.stage}/{letter.kind}" for letter in failed_rows).most_common()
        there = ", ".join(f"{count:,} {name}" for name, count in kinds)
        say(f"no failed row is of {kind_filter!r}; there are: {there}")
    return replace(resume_plan, remaining_chunks=(*resume_plan.remaining_chunks, *chunks))


def build_retry_chunks(
    chunks: Sequence[Chunk], failed_rows: Sequence[DeadLetter], retry_scope: RetryScope
) -> list[Chunk]:
    """The next generation of those chunks that the letters belong to."""
    rows: dict[str, list[tuple[str, RetryHistory]]] = {}
    for letter in failed_rows:
        past = RetryHistory(letter.attempts, letter.attempts if letter.stage == "answer" else 0)
        rows.setdefault(letter.key, []).append((letter.id, past))
    return [
        replace(
            chunk,
            generation=split_part_name(retry_scope.failed_chunks[chunk.name][-1])[1] + 1,
            retry_histories=tuple(rows[chunk.name]),
        )
        for chunk in chunks
        if chunk.name in rows
    ]


def delete_uncommitted_letters(chunks: Sequence[Chunk], context: RunContext, store: OutputStore) -> None:
    """Take away letters that no commit names: of writers that died, and whose chunk another one committed.

    Where nothing is committed yet, their writer may be at work still.
    """
    dataset = Dataset(store, context.fingerprint)
    written: dict[str, list[str]] = {chunk.part_name: [] for chunk in chunks}
    for name in dataset.list_dead_letters() if chunks else ():
        if get_part_of_dead_letters(name) in written:
            written[get_part_of_dead_letters(name)].append(name)
    committed = dataset.list_parts() if any(written.values()) else ()
    parts = [part for part, names in written.items() if names and part in committed]

    def clean(part: str) -> None:
        named = dataset.read_footer(part).note["errors"]
        for name in written[part]:
            if name != named:
                dataset.delete_dead_letters(name)

    for _ in map_in_threads(clean, parts):
        pass
