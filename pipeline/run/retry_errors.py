"""Plans chunks that ask the failed rows of a manifest again, and cleans up dead letters that do not count.

Dead letters of a chunk that the manifest no longer has are ignored: rows of it that are still in the manifest belong to
another chunk, with answers or dead letters of its own. Conversely, a failed row may be answered in a part that was
written later for another version of the manifest. That answer counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.hash_arrays import NAME_BYTES, are_among
from pipeline.manifest.row_keys import hash_row_keys
from pipeline.output.dataset import Dataset
from pipeline.output.dead_letters import DeadLetter, find_failed_chunks, read_notes, read_unresolved_letters
from pipeline.output.part_listing import (
    DeadLetterListing,
    PartListing,
    decode_name,
    encode_name,
    get_part_of_dead_letters,
    split_part_name,
)
from pipeline.output.thread_map import map_in_threads
from pipeline.run.claims import open_claims
from pipeline.run.dedup import HashBuckets
from pipeline.run.log import Say
from pipeline.run.orphans import RowNumbers, find_answered_rows
from pipeline.run.resume import ResumePlan
from pipeline.run.shards import Shard
from pipeline.types import RetryHistory


@dataclass(frozen=True, slots=True)
class RetryScope:
    """The chunks with dead letters, and the parts that may answer their rows after all."""

    failed_chunks: Mapping[str, Sequence[str]]  # the parts of each chunk of the manifest that has dead letters
    removed_chunks: Sequence[str]  # chunks with dead letters that the manifest no longer has
    later_parts: PartListing  # see find_later_parts
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of parts, as far as they were read before

    def narrow(self, plan: ResumePlan, shard: Shard | None) -> RetryScope:
        """The failed chunks of one shard."""
        if shard is None:
            return self
        own_chunks = plan.chunks.select(shard.hold(plan.chunks)).find_chunks(self.failed_chunks)
        return replace(
            self, failed_chunks={name: own for name, own in self.failed_chunks.items() if name in own_chunks}
        )


def find_retry_scope(plan: ResumePlan, dead_letters: DeadLetterListing, dataset: Dataset) -> RetryScope:
    all_failed_chunks = find_failed_chunks(plan.parts, dead_letters)
    chunks = plan.chunks.find_chunks(all_failed_chunks)
    failed_chunks = {name: own_parts for name, own_parts in all_failed_chunks.items() if name in chunks}
    return RetryScope(
        failed_chunks=failed_chunks,
        removed_chunks=[name for name in all_failed_chunks if name not in chunks],
        later_parts=find_later_parts(plan, failed_chunks, dataset) if failed_chunks else PartListing.empty(),
    )


def find_later_parts(plan: ResumePlan, failed_chunks: Collection[str], dataset: Dataset) -> PartListing:
    """The parts of removed chunks that are not older than the run with the oldest failure.

    Older parts cannot answer a failed row: the run lists all parts after its claim, and would not have asked it.
    """
    if not failed_chunks:
        return PartListing.empty()
    oldest_failure = min(plan.parts[chunk_name].modified_at or 0.0 for chunk_name in failed_chunks)
    claim_times = open_claims(dataset).list_times().values()
    oldest_claim = max((claimed_at for claimed_at in claim_times if claimed_at <= oldest_failure), default=0.0)
    return plan.parts.select_other_chunks(plan.chunks.part_names).select_since(oldest_claim)


def read_failed_rows(retry_scope: RetryScope, dataset: Dataset) -> Iterator[DeadLetter]:
    """The rows of the manifest that failed and have no answer, chunk by chunk."""
    answered = find_answered_letters(retry_scope, dataset) if retry_scope.later_parts else set()
    for number, letter in enumerate(read_unresolved_letters(dataset, retry_scope.failed_chunks, retry_scope.notes)):
        if number not in answered:
            yield letter


def find_answered_letters(retry_scope: RetryScope, dataset: Dataset) -> set[int]:
    """The positions of the dead letters whose rows are answered in a later part."""
    letters = read_unresolved_letters(dataset, retry_scope.failed_chunks, retry_scope.notes)
    with HashBuckets() as row_hashes:
        for _, letters_of_chunk in groupby(letters, lambda letter: letter.key):
            row_hashes.add_hashes(hash_row_keys([(letter.id, letter.question) for letter in letters_of_chunk]))
        return set(find_answered_rows(retry_scope.later_parts, row_hashes, dataset).tolist())


def has_failed_rows(plan: ResumePlan, dead_letters: DeadLetterListing, dataset: Dataset, shard: Shard | None) -> bool:
    scope = find_retry_scope(plan, dead_letters, dataset).narrow(plan, shard)
    return any(True for _ in read_failed_rows(scope, dataset))


def add_retries(
    plan: ResumePlan,
    retry_scope: RetryScope,
    dataset: Dataset,
    kind_filter: str,
    say: Say,
    labelled_ids: RowNumbers | None = None,
) -> ResumePlan:
    """Add chunks that ask failed rows of a kind again; an empty filter means all kinds. People have labelled the rows
    of `labelled_ids`, so these are not asked."""
    retry_scope = replace(retry_scope, notes=read_notes(dataset, plan.parts, retry_scope.failed_chunks))
    failed_rows = list(read_failed_rows(retry_scope, dataset))
    if labelled_ids is not None and failed_rows:
        hashes = hash_row_keys([(letter.id, "") for letter in failed_rows])[:, 0]
        are_labelled = np.isin(hashes, labelled_ids).tolist()
        failed_rows = [letter for letter, is_labelled in zip(failed_rows, are_labelled, strict=True) if not is_labelled]
    letters = [letter for letter in failed_rows if letter.is_of_kind(kind_filter)]
    chunks = build_retry_chunks(plan.chunks, letters, retry_scope)
    if chunks or not failed_rows:
        row_count = sum(chunk.asked_row_count for chunk in chunks)
        say(f"{row_count:,} of {len(failed_rows):,} failed rows are asked again")
    else:
        counts = Counter(f"{letter.stage}/{letter.kind}" for letter in failed_rows).most_common()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts)
        say(f"no failed row is of kind {kind_filter!r}; the kinds are: {kinds}")
    return replace(plan, remaining_chunks=plan.remaining_chunks.add_chunks(chunks)) if chunks else plan


def build_retry_chunks(chunks: ChunkTable, letters: Sequence[DeadLetter], retry_scope: RetryScope) -> list[Chunk]:
    """The next generation of each chunk that the dead letters belong to."""
    histories: dict[str, list[tuple[str, RetryHistory]]] = defaultdict(list)
    for letter in letters:
        wrong_answers = letter.attempts if letter.stage == "answer" else 0
        histories[letter.key].append((letter.id, RetryHistory(letter.attempts, wrong_answers)))
    retry_chunks = []
    for name, chunk in chunks.find_chunks(histories).items():
        _, last_generation = split_part_name(retry_scope.failed_chunks[name][-1])
        retry_histories = tuple(histories[name])
        retry_chunks.append(replace(chunk, generation=last_generation + 1, retry_histories=retry_histories))
    return retry_chunks


def delete_uncommitted_letters(
    plan: ResumePlan, missing_chunks: ChunkTable, dead_letters: DeadLetterListing, dataset: Dataset
) -> None:
    """Delete dead letters of the run that no commit names: their writer died, or another one committed first.

    The letters of a chunk that is not committed stay, because their writer may still be running.
    """
    files_by_part: dict[str, list[str]] = defaultdict(list)
    for file in dead_letters:
        files_by_part[get_part_of_dead_letters(file)].append(file)
    names = np.array([encode_name(part) for part in sorted(files_by_part)], f"S{NAME_BYTES}")
    is_committed = are_among(names, np.sort(plan.remaining_chunks.part_names))
    is_committed &= ~are_among(names, np.sort(missing_chunks.part_names))

    def delete_letters_of_part(part: str) -> None:
        committed_file = dataset.read_footer(part).note["errors"]
        for file in files_by_part[part]:
            if file != committed_file:
                dataset.delete_dead_letters(file)

    for _ in map_in_threads(delete_letters_of_part, map(decode_name, names[is_committed].tolist())):
        pass
