"""A job's answers -> the clean table: one row for each row of the manifest that is answered, in large files.

What goes in is settled first: the parts of the manifest's chunks, in its order, then those rows of older parts that
the manifest still asks. Each file's worth of them is written under a name that follows from them, and counted by a
note that can be created once: an export that was interrupted goes on with the files that have no note. A folder holds
one export; what it is an export of stands in `_export.json`, and `_SUCCESS` appears when it is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.context import Work
from pipeline.errors import JobError, OutputError
from pipeline.export.partitioned_files import Files, check
from pipeline.job.spec import Job
from pipeline.manifest.chunks import cut
from pipeline.manifest.files import File, files
from pipeline.output.arrow_tables import MEANINGS, data_schema
from pipeline.output.dead_letters import READERS, split
from pipeline.output.store import Entry, Store
from pipeline.run import preflight, resume, retry_errors
from pipeline.run.dedup import Buckets, common, repeated
from pipeline.run.progress import Say


@dataclass(frozen=True, slots=True)
class Source:
    """One part, or some rows of it."""

    part: str
    size: int
    rows: int  # at most
    offsets: tuple[int, ...] | None = None


def export(job: Job, target: str, *, rows_per_file: int, partition_by: Sequence[str], say: Say) -> None:
    manifest = files(job)
    work = preflight.work(job, manifest)
    store, goal, schema = Store(work.job.output.path), Store(target), data_schema(work)
    check(schema, partition_by)
    if goal.root == store.root:
        raise JobError(f"{target}: is the job's own output; export to another folder")
    if f"{work.fingerprint}.json" not in store.names("questions"):
        raise OutputError(f"{store.path}: holds no answers to this question; run the job first")
    todo = resume.plan(work, manifest, store)
    sources = settled(todo, manifest, work, store)
    settings = {"rows_per_file": rows_per_file, "partition_by": list(partition_by)}
    describe(goal, work, schema, sources, settings)
    rows = 0
    groups = list(grouped(sources, rows_per_file))
    done = goal.names("_groups")
    for number, group in enumerate(groups, 1):
        name = digest([work.fingerprint, list(partition_by), [(each.part, each.size, each.offsets) for each in group]])
        if f"{name}.json" not in done:
            write(name, group, Way(work, store, goal, partition_by))
        rows += int(json.loads(goal.read(f"_groups/{name}.json"))["rows"])
        say(f"{rows:,} rows, {number:,} of {len(groups):,} groups")
    wrong = sum(1 for _ in retry_errors.wrong(retry_errors.scope(todo, work, store), store, work.fingerprint))
    if rows + wrong + todo.rows_left != todo.rows:
        raise OutputError(
            f"{store.path}: {rows:,} answered, {wrong:,} failed and {todo.rows_left:,} open rows are not the "
            f"{todo.rows:,} of the manifest; is a run at work? Export to another folder when it has ended"
        )
    goal.create("_SUCCESS", b"")
    say(f"{target}: {rows:,} of {todo.rows:,} rows")
    if wrong or todo.rows_left:
        say(f"missing: {wrong:,} rows that failed (run --retry-errors), {todo.rows_left:,} not asked yet (run)")


def settled(todo: resume.Plan, manifest: Sequence[File], work: Work, store: Store) -> list[Source]:
    """The parts of the manifest's chunks in its order, then what it still asks of others."""
    listed = store.listing(f"data/fp={work.fingerprint}")
    there = {name.removesuffix(".parquet"): entry for name, entry in listed.items()}
    left = {chunk.name for chunk in todo.left}  # also where a run at work has committed them meanwhile
    parts: dict[str, list[tuple[int, str]]] = {}
    for part in there:
        name, generation = split(part)
        parts.setdefault(name, []).append((generation, part))
    current = [
        Source(part, there[part].size, chunk.asked)
        for chunk in todo.chunks
        for _, part in sorted(parts.get(chunk.name, ()))
        if chunk.name not in left
    ]
    return [*current, *older(todo.orphans, there, manifest, work, store)] if todo.orphans else current


def older(
    orphans: Sequence[str], there: dict[str, Entry], manifest: Sequence[File], work: Work, store: Store
) -> Iterator[Source]:
    """Rows of parts whose chunk is no longer in the manifest, where the rows are. Bucket by bucket."""
    with Buckets() as asked, Buckets() as rows:
        for file in manifest:
            for _, some in cut(work.job, file, work.user):
                asked.add(some)
        starts = [0]
        for hashes in resume.hashes_in(orphans, store, work.fingerprint):
            rows.add(hashes)
            starts.append(rows.rows)
        wanted = [theirs["at"][common(theirs, ours)] for ours, theirs in zip(asked, rows, strict=True)]
        twice = np.concatenate([repeated(theirs)[0] for theirs in rows])
    chosen = np.setdiff1d(np.concatenate(wanted), twice)
    for number, offsets in resume.by_chunk(chosen, np.array(starts)):
        yield Source(orphans[number], there[orphans[number]].size, len(offsets), offsets)


def grouped(sources: Iterable[Source], rows_per_file: int) -> Iterator[list[Source]]:
    """So many that a file has no more rows than it may, unless one part alone has."""
    group: list[Source] = []
    rows = 0
    for source in sources:
        if group and rows + source.rows > rows_per_file:
            yield group
            group, rows = [], 0
        group.append(source)
        rows += source.rows
    if group:
        yield group


def inside(goal: Store) -> set[str]:
    """The names of what lies in a folder, whether files or folders."""
    try:
        found = goal.persist("", lambda: goal.filesystem.ls(goal.root, detail=False), gone_is_fine=True)
    except FileNotFoundError:
        return set()
    return {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != goal.root}


def describe(
    goal: Store, work: Work, schema: pa.Schema, sources: Sequence[Source], settings: dict[str, object]
) -> None:
    """`_export.json`: what the folder is an export of. Another one is refused, and so is a folder of other things."""
    there = inside(goal)
    if there and "_export.json" not in there:
        raise OutputError(f"{goal.path} holds {sorted(there)[0]} and is no export; export to an empty folder")
    said = {
        "fingerprint": work.fingerprint,
        **settings,
        "parts": len(sources),
        "bytes": sum(source.size for source in sources),
        "sources": digest(sorted((source.part, source.size, source.offsets) for source in sources)),
        "columns": {field.name: {"type": str(field.type), "is": MEANINGS.get(field.name, "")} for field in schema},
    }
    if goal.create("_export.json", json.dumps(said, indent=2).encode()):
        return
    before = json.loads(goal.read("_export.json"))
    differs = [name for name in said if name != "columns" and said[name] != before.get(name)]
    if differs:
        what = ", ".join(f"{name}: was {before.get(name)}, is {said[name]}" for name in differs if name != "sources")
        raise OutputError(
            f"{goal.path} holds another export ({what or 'other answers'}); "
            "export to another folder, one a day for instance, or delete this one"
        )


@dataclass(frozen=True, slots=True)
class Way:
    """From where, to where."""

    work: Work
    store: Store
    goal: Store
    by: Sequence[str]


def write(name: str, group: Sequence[Source], way: Way) -> None:
    """The files of a group, then its note."""
    rows = 0
    with Files(data_schema(way.work), way.by) as out, ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(group), 4 * READERS):
            some = group[start : start + 4 * READERS]
            for table in readers.map(lambda each: rows_of(each, way.work, way.store), some):
                out.add(table)
                rows += table.num_rows
        out.end()
        for place, path in out.written.items():
            way.goal.upload(f"{place}{name}.parquet", path)
    note = {"rows": rows, "files": sorted(f"{place}{name}.parquet" for place in out.written)}
    way.goal.create(f"_groups/{name}.json", json.dumps(note).encode())


def rows_of(source: Source, work: Work, store: Store) -> pa.Table:
    """In the columns that all files have, also where the manifest's types of kept columns have changed since."""
    schema = data_schema(work)
    part = io.BytesIO(store.read(f"data/fp={work.fingerprint}/{source.part}.parquet"))
    table = pq.read_table(part).replace_schema_metadata(None)
    if source.offsets is not None:
        table = table.take(list(source.offsets))
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
