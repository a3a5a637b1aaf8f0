"""What is written of a chunk, generation by generation -> its rows that are still wrong.

A commit names its dead letters in its note; letters that no commit names are those of a writer that lost. A row is
wrong from the letter on until a later generation answers it. Only chunks with letters are opened, one after another.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output.commit import read_commit_note
from pipeline.output.store import OutputStore

READER_THREADS = 16  # chunks read at once
RowKey = tuple[str, str]  # a row's id and question


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that is still wrong, as its newest letter has it."""

    id: str
    question: str
    stage: str
    kind: str
    message: str
    attempts: int
    run: str
    key: str  # the chunk's name

    def is_of_kind(self, kind_filter: str) -> bool:
        """`kind` is a stage, a kind, or both as stage/kind; empty means any."""
        return kind_filter in ("", self.stage, self.kind, f"{self.stage}/{self.kind}")


GenerationResult = tuple[Iterable[DeadLetter], Collection[RowKey]]  # who failed in it, and who was answered


def fold_generations(generations: Iterable[GenerationResult]) -> list[DeadLetter]:
    """
    >>> a, b, again = (Letter(name, "q", "fetch", "timeout", "", n, "", "k") for name, n in ("a1", "b1", "a2"))
    >>> fold([([a, b], []), ([], [("b", "q")])]) == [a]
    True
    """
    wrong: dict[RowKey, DeadLetter] = {}
    for letters, answered in generations:
        for pair in answered:
            wrong.pop(pair, None)
        wrong |= {(letter.id, letter.question): letter for letter in letters}
    return list(wrong.values())


def split_part_name(part: str) -> tuple[str, int]:
    """
    >>> split("5f2a"), split("5f2a.g12")
    (('5f2a', 0), ('5f2a', 12))
    """
    name, _, generation = part.partition(".g")
    return name, int(generation or 0)


def find_failed_chunks(part_files: Iterable[str], letter_files: Iterable[str]) -> dict[str, list[str]]:
    """The chunks that have letters, by name: their parts, oldest generation first. Both are names of objects.

    A chunk whose first part was taken away has none: it is asked anew.
    """
    names = {split_part_name(name.rpartition("-")[0])[0] for name in letter_files}
    found: dict[str, list[tuple[int, str]]] = {}
    for each in part_files:
        part = each.removesuffix(".parquet")
        name, generation = split_part_name(part)
        if name in names:
            found.setdefault(name, []).append((generation, part))
    return {name: [part for _, part in sorted(own)] for name, own in sorted(found.items()) if (0, name) in own}


def read_unresolved_letters(
    store: OutputStore, fingerprint: str, parts_by_chunk: Mapping[str, Sequence[str]]
) -> Iterator[DeadLetter]:
    """What is wrong with the rows of these chunks, each given with its parts."""
    chunks = list(parts_by_chunk.items())
    with ThreadPoolExecutor(READER_THREADS) as readers:
        for start in range(0, len(chunks), 4 * READER_THREADS):
            some = chunks[start : start + 4 * READER_THREADS]
            for letters in readers.map(lambda chunk: read_chunk_letters(store, fingerprint, *chunk), some):
                yield from letters


def read_chunk_letters(store: OutputStore, fingerprint: str, chunk_name: str, parts: Iterable[str]) -> list[DeadLetter]:
    return fold_generations(read_generation(store, fingerprint, chunk_name, part) for part in parts)


def read_generation(store: OutputStore, fingerprint: str, chunk_name: str, part: str) -> GenerationResult:
    data = store.read_object(f"data/fp={fingerprint}/{part}.parquet")
    named = read_commit_note(data)["errors"]
    answered = pq.read_table(io.BytesIO(data), columns=["id", "question"]).to_pylist() if part != chunk_name else ()
    return read_letters(store, fingerprint, chunk_name, named), {(row["id"], row["question"]) for row in answered}


def read_letters(store: OutputStore, fingerprint: str, chunk_name: str, letter_file: str | None) -> list[DeadLetter]:
    if letter_file is None:
        return []
    columns = [column for column in DeadLetter.__slots__ if column != "key"]
    try:
        data = store.read_object(f"errors/fp={fingerprint}/{letter_file}")
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            lost = f"{store.path}/errors/fp={fingerprint}/{letter_file} was deleted and says what became of rows"
            raise OutputError(
                f"{lost}; delete data/fp={fingerprint}/{chunk_name}*, and they are asked again"
            ) from error
        raise
    return [DeadLetter(**row, key=chunk_name) for row in pq.read_table(io.BytesIO(data), columns=columns).to_pylist()]
