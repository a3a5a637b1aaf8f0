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
from pipeline.output.commit import note_of
from pipeline.output.store import Store

READERS = 16  # chunks read at once
Pair = tuple[str, str]  # a row's id and question


@dataclass(frozen=True, slots=True)
class Letter:
    """A row that is still wrong, as its newest letter has it."""

    id: str
    question: str
    stage: str
    kind: str
    message: str
    attempts: int
    run: str
    key: str  # the chunk's name

    def matches(self, kind: str) -> bool:
        """`kind` is a stage, a kind, or both as stage/kind; empty means any."""
        return kind in ("", self.stage, self.kind, f"{self.stage}/{self.kind}")


Generation = tuple[Iterable[Letter], Collection[Pair]]  # who failed in it, and who was answered


def fold(generations: Iterable[Generation]) -> list[Letter]:
    """
    >>> a, b, again = (Letter(name, "q", "fetch", "timeout", "", n, "", "k") for name, n in ("a1", "b1", "a2"))
    >>> fold([([a, b], []), ([], [("b", "q")])]) == [a]
    True
    """
    wrong: dict[Pair, Letter] = {}
    for letters, answered in generations:
        for pair in answered:
            wrong.pop(pair, None)
        wrong |= {(letter.id, letter.question): letter for letter in letters}
    return list(wrong.values())


def split(part: str) -> tuple[str, int]:
    """
    >>> split("5f2a"), split("5f2a.g12")
    (('5f2a', 0), ('5f2a', 12))
    """
    name, _, generation = part.partition(".g")
    return name, int(generation or 0)


def failing(parts: Iterable[str], written: Iterable[str]) -> dict[str, list[str]]:
    """The chunks that have letters, by name: their parts, oldest generation first. Both are names of objects.

    A chunk whose first part was taken away has none: it is asked anew.
    """
    names = {split(name.rpartition("-")[0])[0] for name in written}
    found: dict[str, list[tuple[int, str]]] = {}
    for each in parts:
        part = each.removesuffix(".parquet")
        name, generation = split(part)
        if name in names:
            found.setdefault(name, []).append((generation, part))
    return {name: [part for _, part in sorted(own)] for name, own in sorted(found.items()) if (0, name) in own}


def wrong(store: Store, fingerprint: str, failed: Mapping[str, Sequence[str]]) -> Iterator[Letter]:
    """What is wrong with the rows of these chunks, each given with its parts."""
    chunks = list(failed.items())
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(chunks), 4 * READERS):
            some = chunks[start : start + 4 * READERS]
            for letters in readers.map(lambda chunk: of_chunk(store, fingerprint, *chunk), some):
                yield from letters


def of_chunk(store: Store, fingerprint: str, name: str, parts: Iterable[str]) -> list[Letter]:
    return fold(generation(store, fingerprint, name, part) for part in parts)


def generation(store: Store, fingerprint: str, name: str, part: str) -> Generation:
    data = store.read(f"data/fp={fingerprint}/{part}.parquet")
    named = note_of(data)["errors"]
    answered = pq.read_table(io.BytesIO(data), columns=["id", "question"]).to_pylist() if part != name else ()
    return letters_in(store, fingerprint, name, named), {(row["id"], row["question"]) for row in answered}


def letters_in(store: Store, fingerprint: str, name: str, named: str | None) -> list[Letter]:
    if named is None:
        return []
    columns = [column for column in Letter.__slots__ if column != "key"]
    try:
        data = store.read(f"errors/fp={fingerprint}/{named}")
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            lost = f"{store.path}/errors/fp={fingerprint}/{named} was deleted and says what became of rows"
            raise OutputError(f"{lost}; delete data/fp={fingerprint}/{name}*, and they are asked again") from error
        raise
    return [Letter(**row, key=name) for row in pq.read_table(io.BytesIO(data), columns=columns).to_pylist()]
