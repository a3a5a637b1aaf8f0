"""The rows of a chunk that have failed and have no answer yet, found by reading its generations in order.

A row counts as failed from its dead letter on, until a later generation answers it. Only dead letters that a commit
names count; others were written by a worker that lost the race to commit. Only chunks with dead letters are opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.hash_arrays import NAME_BYTES
from pipeline.output.dataset import Dataset
from pipeline.output.part_index import read_footers
from pipeline.output.part_listing import DeadLetterListing, PartListing, decode_name
from pipeline.output.thread_map import map_in_threads

RowKey = tuple[str, str]  # a row's id and question
FailureNotes = Mapping[str, Mapping[str, Any]]  # of commits, by the part
NO_NOTES: FailureNotes = {}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The newest failure of a row that has no answer."""

    id: str
    question: str
    stage: str
    kind: str
    message: str
    attempts: int
    run: str
    key: str  # the chunk's name

    def is_of_kind(self, kind_filter: str) -> bool:
        """The filter lists stages, kinds, or both as stage/kind, with commas; an empty filter matches everything.

        >>> letter = DeadLetter("a", "q", "fetch", "timeout", "", 1, "", "chunk")
        >>> [letter.is_of_kind(kinds) for kinds in ("", "decode, timeout", "fetch/timeout", "decode/timeout,answer")]
        [True, True, True, False]
        """
        kinds = [kind.strip() for kind in kind_filter.split(",")]
        return not kind_filter or not {self.stage, self.kind, f"{self.stage}/{self.kind}"}.isdisjoint(kinds)


GenerationResult = tuple[Iterable[DeadLetter], Collection[RowKey]]  # the failed and the answered rows


def fold_generations(generations: Iterable[GenerationResult]) -> list[DeadLetter]:
    """The rows that are still failed after all generations.

    >>> a, b = (DeadLetter(name, "q", "fetch", "timeout", "", 1, "", "chunk") for name in ("a", "b"))
    >>> fold_generations([([a, b], []), ([], [("b", "q")])]) == [a]
    True
    """
    failed: dict[RowKey, DeadLetter] = {}
    for letters, answered in generations:
        for row_key in answered:
            failed.pop(row_key, None)
        failed |= {(letter.id, letter.question): letter for letter in letters}
    return list(failed.values())


def find_failed_chunks(
    parts: PartListing, dead_letters: DeadLetterListing, among: NDArray[np.bytes_] | None = None
) -> dict[str, list[str]]:
    """The parts of every chunk with dead letters, oldest generation first, by the chunk's name; only `among` these.

    A chunk whose first part was deleted is left out: the next run asks all its rows again.
    """
    chunk_names = dead_letters.chunk_names
    names = (chunk_names if among is None else np.intersect1d(chunk_names, among)).astype(f"S{NAME_BYTES}")
    names = names[parts.hold(names)]
    starts, ends = parts.locate_generations(names)
    spans = zip(names.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return {decode_name(name): parts.list_names(start, end) for name, start, end in spans}


def read_notes(dataset: Dataset, parts: PartListing, failed_chunks: Mapping[str, Sequence[str]]) -> FailureNotes:
    """What commits of failed chunks noted, from summaries as far as there are some."""
    own_parts = parts.select([part for own in failed_chunks.values() for part in own])
    names = ("errors", "failed")
    footers = read_footers(dataset, own_parts)
    return {part: {name: footer.note[name] for name in names} for part, footer in footers}


def read_unresolved_letters(
    dataset: Dataset, parts_by_chunk: Mapping[str, Sequence[str]], notes: FailureNotes = NO_NOTES
) -> Iterator[DeadLetter]:
    """The rows of these chunks that are still failed, chunk by chunk. `notes` spares the footers of their parts."""

    def read_chunk(chunk_name: str) -> list[DeadLetter]:
        parts = parts_by_chunk[chunk_name]
        return fold_generations(_read_generation(dataset, chunk_name, part, notes.get(part)) for part in parts)

    return chain.from_iterable(map_in_threads(read_chunk, parts_by_chunk))


def _read_generation(dataset: Dataset, chunk_name: str, part: str, note: Mapping[str, Any] | None) -> GenerationResult:
    file = (dataset.read_footer(part).note if note is None else note)["errors"]
    columns = [name for name in DeadLetter.__slots__ if name != "key"]
    rows = dataset.read_dead_letters(file, columns).to_pylist() if file else []
    answered = dataset.read_part(part, ["id", "question"]).to_pylist() if part != chunk_name else []
    return [DeadLetter(**row, key=chunk_name) for row in rows], {(row["id"], row["question"]) for row in answered}
