"""Outcomes of a chunk -> one object under the chunk's key. Creating that object is the commit.

Dead letters are written just before, under a name that the commit's metadata holds: whoever loses the race to
create the object leaves letters that nobody reads. Nothing is ever overwritten.
"""

from __future__ import annotations

import errno
import io
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.flow import Outcome, Work
from pipeline.output.table import tables

NOTE = b"vlbatch"  # where a part's metadata says what else belongs to the commit


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker tells the driver about a chunk. `won` is false where another had committed it before."""

    key: str
    won: bool
    answered: int
    failed: int
    kinds: dict[str, int] = field(default_factory=dict)  # "stage/kind" -> rows
    examples: dict[str, str] = field(default_factory=dict)  # "stage/kind" -> one message
    vision_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    retries: int = 0  # questions asked again
    seconds: dict[str, float] = field(default_factory=dict)  # of the workers: what their time went to


class Store:
    """An output folder, wherever fsspec reaches."""

    def __init__(self, path: str):
        self.path = path.rstrip("/")
        self.filesystem, self.root = fsspec.core.url_to_fs(self.path)

    @property
    def local(self) -> bool:
        protocol = self.filesystem.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def create(self, name: str, data: bytes) -> bool:
        """Create an object whole, or not at all; False where it was there before."""
        path = f"{self.root}/{name}"
        with self.writing():
            return link(path, data) if self.local else self.put(path, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write an object over the one before; readers see the one or the other."""
        path = f"{self.root}/{name}"
        with self.writing():
            if self.local:
                beside(path, data, os.replace)
            else:
                self.filesystem.pipe_file(path, data)

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise OutputError(f"{self.path}: cannot be written; check output.path and its credentials") from error
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def put(self, path: str, data: bytes) -> bool:
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self.ours(path, data)
        except OSError as error:  # what s3fs makes of a failed precondition on some servers
            if error.errno == errno.EINVAL or "recondition" in str(error):
                return self.ours(path, data)
            raise
        return True

    def ours(self, path: str, data: bytes) -> bool:
        """A refused PUT may be one's own, sent twice after a lost reply: the content tells."""
        return bool(self.filesystem.cat_file(path) == data)

    def read(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(f"{self.root}/{name}"))

    def names(self, folder: str) -> set[str]:
        """The objects of a folder, without their path; empty where there is none."""
        try:
            self.filesystem.invalidate_cache()
            names = {path.rpartition("/")[2] for path in self.filesystem.find(f"{self.root}/{folder}")}
        except FileNotFoundError:
            return set()
        return {name for name in names if name and not name.startswith(".")}  # not what a killed write left


def link(path: str, data: bytes) -> bool:
    try:
        beside(path, data, os.link)
    except FileExistsError:
        return False
    return True


def beside(path: str, data: bytes, move: Callable[[str, str], None]) -> None:
    """A local object appears whole: written under a name that readers pass over, then moved or linked to its own."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    hidden = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(hidden, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(hidden, path)
    finally:
        if os.path.exists(hidden):
            os.unlink(hidden)


def parquet(table: pa.Table, note: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({NOTE: json.dumps(note)}), sink, compression="zstd")
    return bytes(sink.getvalue())


def write(key: str, outcomes: Sequence[Outcome], work: Work, store: Store) -> Receipt:
    """Commit a chunk. Whoever comes second finds it done, and says so."""
    answered, failed = tables(outcomes, work)
    folder, letters = f"fp={work.fingerprint}", f"{key}-{uuid.uuid4().hex[:8]}.parquet"
    kinds = Counter(f"{s}/{k}" for s, k in zip(failed["stage"].to_pylist(), failed["kind"].to_pylist(), strict=True))
    if failed.num_rows:
        store.create(f"errors/{folder}/{letters}", parquet(failed, {"key": key}))
    note = {"errors": letters if failed.num_rows else None, "answered": answered.num_rows, "failed": failed.num_rows}
    won = store.create(f"data/{folder}/{key}.parquet", parquet(answered, {**note, "kinds": kinds}))
    if not won:
        return replace(found(store, work.fingerprint, key), won=False)
    messages = zip(failed["stage"].to_pylist(), failed["kind"].to_pylist(), failed["message"].to_pylist(), strict=True)
    return replace(
        receipt(key, answered["tokens"], {**note, "kinds": kinds}),
        examples={f"{stage}/{kind}": message for stage, kind, message in messages},
        retries=sum(n - 1 for n in [*answered["attempts"].to_pylist(), *failed["attempts"].to_pylist()]),
    )


def found(store: Store, fingerprint: str, key: str) -> Receipt:
    """What is known of a chunk that another has committed, or whose receipt was lost."""
    part = pq.ParquetFile(io.BytesIO(store.read(f"data/fp={fingerprint}/{key}.parquet")))
    return receipt(key, part.read(["tokens"])["tokens"], json.loads(part.schema_arrow.metadata[NOTE]))


def receipt(key: str, tokens: pa.ChunkedArray, note: Mapping[str, Any]) -> Receipt:
    rows = tokens.to_pylist()
    return Receipt(
        key,
        True,
        note["answered"],
        note["failed"],
        kinds=dict(note["kinds"]),
        vision_tokens=sum(row["vision"] for row in rows),
        output_tokens=sum(row["output"] for row in rows),
        prompt_tokens=sum(row["prompt"] for row in rows),
    )
