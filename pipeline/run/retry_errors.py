"""What is wrong with the rows of a manifest -> chunks that ask them again.

The letters of a chunk that no longer stands in the manifest count for nothing: the rows of it that are still asked
are asked by another chunk, which has an answer or letters of its own. The other way round, a row can be wrong in its
chunk and answered in a part that was written later for another form of the manifest; that answer counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

from pipeline.context import Work
from pipeline.manifest.chunks import Chunk, hashes_of
from pipeline.output import dead_letters
from pipeline.output.commit import note_of
from pipeline.output.dead_letters import READERS, Letter, split
from pipeline.output.store import Store
from pipeline.run.dedup import Buckets
from pipeline.run.progress import Say
from pipeline.run.resume import Plan, answered_in
from pipeline.types import Past


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look for the rows of a manifest that failed, and for answers that they have after all."""

    failed: Mapping[str, Sequence[str]]  # its chunks with letters, and the parts of each
    gone: Sequence[str]  # chunks with letters that it has no more
    since: Sequence[str]  # parts of other chunks, not older than the oldest with letters: nobody skipped what they hold


def scope(todo: Plan, work: Work, store: Store) -> Scope:
    written = store.names(f"errors/fp={work.fingerprint}")
    there = store.listing(f"data/fp={work.fingerprint}") if written else {}
    names, failing = {chunk.name for chunk in todo.chunks}, dead_letters.failing(there, written)
    failed = {name: parts for name, parts in failing.items() if name in names}
    if not failed:
        return Scope({}, [*failing], ())
    first = min(there[f"{name}.parquet"].modified or 0 for name in failed)
    parts = ((name.removesuffix(".parquet"), entry.modified) for name, entry in there.items())
    since = sorted(part for part, at in parts if (at is None or at >= first) and split(part)[0] not in names)
    return Scope(failed, sorted(failing.keys() - names), since)


def wrong(where: Scope, store: Store, fingerprint: str) -> Iterator[Letter]:
    """The rows of the manifest that failed and have no answer, chunk by chunk."""
    answered: set[int] = set()
    if where.since:
        with Buckets() as rows:
            for _, some in groupby(dead_letters.wrong(store, fingerprint, where.failed), lambda letter: letter.key):
                rows.add(hashes_of([(letter.id, letter.question) for letter in some]))
            answered = set(answered_in(where.since, rows, store, fingerprint).tolist())
    for at, letter in enumerate(dead_letters.wrong(store, fingerprint, where.failed)):
        if at not in answered:
            yield letter


def with_retries(todo: Plan, where: Scope, found: Sequence[Letter], kind: str, say: Say) -> Plan:
    """The plan, and in it those of the failed rows that are of a kind once more; empty means of any kind."""
    chunks = retries(todo.chunks, [letter for letter in found if letter.matches(kind)], where)
    rows = sum(chunk.asked for chunk in chunks)
    if chunks or not found:
        say(f"{rows:,} of {len(found):,} failed rows are asked again")
    else:
        kinds = Counter(f"{letter.stage}/{letter.kind}" for letter in found).most_common()
        there = ", ".join(f"{count:,} {name}" for name, count in kinds)
        say(f"no failed row is of {kind!r}; there are: {there}")
    return replace(todo, left=(*todo.left, *chunks))


def retries(chunks: Sequence[Chunk], found: Sequence[Letter], where: Scope) -> list[Chunk]:
    """The next generation of those chunks that the letters belong to."""
    rows: dict[str, list[tuple[str, Past]]] = {}
    for letter in found:
        past = Past(letter.attempts, letter.attempts if letter.stage == "answer" else 0)
        rows.setdefault(letter.key, []).append((letter.id, past))
    return [
        replace(chunk, generation=split(where.failed[chunk.name][-1])[1] + 1, again=tuple(rows[chunk.name]))
        for chunk in chunks
        if chunk.name in rows
    ]


def sweep(chunks: Sequence[Chunk], work: Work, store: Store) -> None:
    """Take away letters that no commit names: of writers that died, and whose chunk another one committed.

    Where nothing is committed yet, their writer may be at work still.
    """
    data, errors = f"data/fp={work.fingerprint}", f"errors/fp={work.fingerprint}"
    written: dict[str, list[str]] = {chunk.part: [] for chunk in chunks}
    for name in store.names(errors) if chunks else ():
        if name.rpartition("-")[0] in written:
            written[name.rpartition("-")[0]].append(name)
    committed = store.names(data) if any(written.values()) else ()
    parts = [part for part, names in written.items() if names and f"{part}.parquet" in committed]

    def clean(part: str) -> None:
        named = note_of(store.read(f"{data}/{part}.parquet"))["errors"]
        for name in written[part]:
            if name != named:
                store.remove(f"{errors}/{name}")

    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(parts), 4 * READERS):
            list(readers.map(clean, parts[start : start + 4 * READERS]))
