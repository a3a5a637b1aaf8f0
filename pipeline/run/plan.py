"""A job, its manifest and what its output holds already -> the Work that workers share and the chunks that are left.

The driver holds keys and three hashes a row, never rows. Resume is a listing: a chunk whose object exists is done.
Rows that were answered under a chunk that no longer exists, because the manifest was rewritten or cut elsewhere,
are known by (id, question) and not asked again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import JobError, OutputError
from pipeline.flow import Work, base_folder, model_name
from pipeline.intake.manifest import Chunk, File, columns_of, cut, kept, row_digest, rows_of
from pipeline.job import Job
from pipeline.jobfile import fingerprint, question
from pipeline.model import weights
from pipeline.model.grammar import minimum
from pipeline.output import schema as schemas
from pipeline.output.geometry import meanings
from pipeline.output.write import Store

Cut = tuple[Chunk, NDArray[np.uint64]]
Cutter = Callable[[Job, Sequence[File], str | None], Iterable[list[Cut]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a manifest asks, and what of it is left."""

    chunks: tuple[Chunk, ...]  # all of them, in order
    left: tuple[Chunk, ...]
    rows: int
    rows_left: int
    duplicates: int


def work(job: Job, found: Sequence[File]) -> Work:
    """What the driver settles once, and every worker is told."""
    job = settled(job, found)
    schema = schemas.load(job.answer.schema_, base=base_folder())
    user = schemas.prompt(schema) if schema and job.prompt.user is None else None
    said = question(
        job,
        weights=weights.identity(job.model.weights, job.model.revision),
        schema=f"{user or ''}\n{schema.text}" if schema else None,
    )
    now = datetime.now(UTC)
    return Work(
        job=job,
        schema=schema,
        user=user,
        kept=kept(found[0].open().schema(), job) if job.input.keep else pa.schema([]),
        said=said,
        fingerprint=fingerprint(said),
        model=model_name(job),
        run=f"{now:%Y%m%dT%H%M%S}-{hashlib.blake2b(str(now.timestamp()).encode(), digest_size=2).hexdigest()}",
    )


def settled(job: Job, found: Sequence[File]) -> Job:
    """The job with paths that mean the same in every process, and roots that follow from a local manifest."""
    roots = job.input.roots or tuple(
        dict.fromkeys(file.base.removeprefix("file://") for file in found if file.url.startswith("file://"))
    )
    weights_path = Path(job.model.weights)
    model = {"weights": str(weights_path.absolute())} if weights_path.is_dir() else {}
    filesystem, path = fsspec.core.url_to_fs(job.output.path)
    return job.model_copy(
        update={
            "input": job.input.model_copy(update={"roots": tuple(str(local(root)) for root in roots)}),
            "model": job.model.model_copy(update=model),
            "output": job.output.model_copy(update={"path": filesystem.unstrip_protocol(path).removeprefix("file://")}),
        }
    )


def local(path: str) -> Path:
    return (base_folder() / path).absolute()


def cut_here(job: Job, found: Sequence[File], user: str | None) -> Iterable[list[Cut]]:
    """Files cut in this process, one after another."""
    for file in found:
        yield list(cut(job, file, user))


def plan(
    work: Work, found: Sequence[File], store: Store, *, cutter: Cutter = cut_here, limit: int | None = None
) -> Plan:
    """Which chunks there are and which are left to do."""
    cuts = limited((one for each in cutter(work.job, found, work.user) for one in each), limit)
    existing = {name.removesuffix(".parquet") for name in store.names(f"data/fp={work.fingerprint}")}
    chunks = [chunk for chunk, _ in cuts]
    done = [chunk.key in existing for chunk in chunks]
    skips, duplicates = repeats(cuts, done, work)
    answered = answered_elsewhere(existing - {chunk.key for chunk in chunks}, work, store) if not all(done) else set()
    left = []
    for (chunk, hashes), is_done, skip in zip(cuts, done, skips, strict=True):
        if is_done:
            continue
        elsewhere = (
            [row for row, pair in enumerate(hashes[: chunk.rows, 1:]) if pair.tobytes() in answered] if answered else []
        )
        skipped = tuple(sorted({*chunk.skip, *skip, *elsewhere}))
        if len(skipped) < len(hashes):
            left.append(replace(chunk, skip=skipped))
    return Plan(
        chunks=tuple(chunks),
        left=tuple(left),
        rows=sum(chunk.rows for chunk in chunks) - duplicates,
        rows_left=sum(chunk.rows - sum(row < chunk.rows for row in chunk.skip) for chunk in left),
        duplicates=duplicates,
    )


def limited(cuts: Iterable[Cut], limit: int | None) -> list[Cut]:
    """The first rows only; a chunk cut short is another chunk, with another key."""
    out: list[Cut] = []
    left = limit
    for chunk, hashes in cuts:
        if left is not None and chunk.rows > left:
            if left:
                key = hashlib.blake2b(hashes[:left, 1:].tobytes(), digest_size=12).hexdigest()
                beyond = tuple(range(left, chunk.rows))
                out.append((replace(chunk, key=key, rows=left, skip=beyond), hashes))
            break
        out.append((chunk, hashes))
        left = None if left is None else left - chunk.rows
    return out


def repeats(cuts: Sequence[Cut], done: Sequence[bool], work: Work) -> tuple[list[list[int]], int]:
    """Rows to skip because the same question is asked elsewhere; the same id with another question is refused.

    Of several, the one in a chunk that is done already stays, else the first.
    """
    skips: list[list[int]] = [[] for _ in cuts]
    if not cuts:
        return skips, 0
    rows = np.concatenate([hashes[: chunk.rows] for chunk, hashes in cuts])
    chunk_of = np.repeat(np.arange(len(cuts)), [chunk.rows for chunk, _ in cuts])
    row_of = np.concatenate([np.arange(chunk.rows) for chunk, _ in cuts])
    order = np.lexsort((np.arange(len(rows)), ~np.asarray(done)[chunk_of], rows[:, 0]))
    ids = rows[order, 0]
    first = np.zeros(len(rows), dtype=np.int64)  # for each row, where its id stands first
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    first[starts] = starts
    first = np.maximum.accumulate(first)
    for at in np.flatnonzero(first != np.arange(len(rows))):
        one, other = order[first[at]], order[at]
        if (rows[one] != rows[other]).any():
            refuse(cuts[chunk_of[one]][0], int(row_of[one]), cuts[chunk_of[other]][0], int(row_of[other]), work)
        skips[chunk_of[other]].append(int(row_of[other]))
    return skips, sum(map(len, skips))


def refuse(one: Chunk, one_row: int, other: Chunk, other_row: int, work: Work) -> None:
    """Name an id that asks two things. Equal hashes of unequal ids are no reason to refuse."""
    (name, again) = (
        rows_of(replace(chunk, skip=()), work.job, work.user)[1][row][1]
        for chunk, row in ((one, one_row), (other, other_row))
    )
    if name == again:
        where = one.file.url if one.file == other.file else f"{one.file.url} and {other.file.url}"
        raise JobError(
            f"id {name!r} stands twice with different questions in {where}; "
            "input.id must name a column that is unique, or be left out"
        )


def answered_elsewhere(orphans: Iterable[str], work: Work, store: Store) -> set[bytes]:
    """(id, question) of rows in parts whose chunk is no longer in the manifest."""
    out: set[bytes] = set()
    for key in orphans:
        part = pq.read_table(
            io.BytesIO(store.read(f"data/fp={work.fingerprint}/{key}.parquet")), columns=["id", "question"]
        )
        out |= {row_digest(*pair) for pair in zip(part["id"].to_pylist(), part["question"].to_pylist(), strict=True)}
    return out


def open_output(work: Work, *, add: bool) -> Store:
    """The output, after making sure that it holds answers to this question, or that others are welcome in it."""
    store = Store(work.job.output.path)
    mine, others = f"{work.fingerprint}.json", store.names("questions")
    if others and mine not in others and not add:
        before = json.loads(store.read(f"questions/{max(others)}"))
        changes = "\n".join(f"  {line}" for line in differences(before, work.said))
        raise OutputError(
            f"{store.path} holds answers to another question:\n{changes}\n"
            "Write elsewhere (output.path), or add these answers beside the others with --on-change add."
        )
    store.create(f"questions/{mine}", json.dumps(work.said, indent=2, default=str).encode())
    return store


def differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))
    elif before != now:
        yield f"{at}: was {short(before)}, is {short(now)}"


def short(value: Any) -> str:
    text = "the default" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problems(work: Work, found: Sequence[File]) -> list[str]:
    """What would go wrong with every row, found without starting anything."""
    for file in found:
        columns_of(work.job, file, file.open().schema(), work.user)
    out = schemas.problems(work.schema) if work.schema else []
    if work.schema and work.job.answer.guided:
        tokenizer = weights.tokenizer(weights.locate_small(work.job.model.weights, work.job.model.revision))
        least = minimum(work.schema.text, tokenizer)
        if work.job.answer.max_new_tokens < least:
            out.append(f"answer.max_new_tokens: the shortest answer that fits the schema has {least} tokens")
    return out


def caution(work: Work) -> str | None:
    """What the models' authors warn of in a job that can run all the same."""
    means = meanings(work.schema.json_schema).values() if work.schema else ()
    return weights.caution(work.job.model, means)
