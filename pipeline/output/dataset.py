"""The layout of an output folder. No other module knows where its objects are or what they are called.

    data/fp=FINGERPRINT/PART.parquet              answered rows; creating this object commits the part
    errors/fp=FINGERPRINT/PART-RANDOM.parquet     dead letters; the part's commit note names the file that counts
    _index/fp=FINGERPRINT/KIND/NAME.parquet       summaries of many parts, see output/part_index.py
    _lease/fp=FINGERPRINT/                        which run works on the question; readers pass over the name
    _lease/fp=FINGERPRINT-shards/EPOCH/SHARD/     which run works on a shard of it
    questions/FINGERPRINT.json                    the inputs of the fingerprint, and the rows of a chunk and of a slice
    scores/FINGERPRINT/TRUTH.json                 how good the answers are, measured against a truth (its hash)
    classes/NUMBER.json                           the names of classes in exports; the highest number counts
    runs/RUN/job.json, plan.json, report.json     the resolved job, what was left to do, the result

A part is named after its chunk; `.g1`, `.g2`, ... are the generations that ask failed rows of the chunk again.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import OutputError
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_listing import (
    HEX_DIGITS,
    DeadLetterListing,
    PartListing,
    decode_name,
    get_part_of_dead_letters,
    split_part_name,
)
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads

COMMIT_NOTE_KEY = b"vlbatch"  # the key of the commit note in a part's metadata
MAX_PARTS_LOOKED_UP = 64  # one by one; more are found faster by a listing
RunDocument = Literal["job", "plan", "report"]
SummaryKind = Literal["footers", "rows"]


class NotedChunkSize(NamedTuple):
    """In a question; no input of a fingerprint has one of these names. None: nothing is noted."""

    chunk_rows: int | None = None
    slice_rows: int | None = None


NOTHING_NOTED = NotedChunkSize()


class PartFooter(NamedTuple):
    row_count: int
    note: Mapping[str, Any]  # what the commit noted


@dataclass(frozen=True)
class Dataset:
    """The answers to one question in an output folder."""

    store: OutputStore
    fingerprint: str

    @cached_property
    def lease_folder(self) -> str:
        """Outputs of earlier versions keep the folder that they have, so that no run misses the lease of another."""
        old_folder = f"lease/fp={self.fingerprint}"
        return old_folder if self.store.list_names(old_folder) else f"_{old_folder}"

    def get_shards_folder(self, epoch: int) -> str:
        """Where runs claim shards in an epoch of the lease."""
        return f"{self.lease_folder}-shards/{epoch:08d}"

    def delete_lease(self, epoch: int) -> None:
        folder = self.get_shards_folder(epoch)
        for name in self.store.list_names(folder):
            self.store.delete_object(f"{folder}/{name}")
        for ending in ("beat", "json"):
            self.store.delete_object(f"{self.lease_folder}/{epoch:08d}.{ending}")

    def read_store_time(self) -> float | None:
        """Now, by the clock that tells when objects were written; None if the store does not tell."""
        folder, name = "_lease/clock", uuid.uuid4().hex
        self.store.create_object(f"{folder}/{name}", b"now")
        modified_at = self.store.list_objects(folder)[name].modified_at
        with suppress(OutputError):  # some roles may not delete
            self.store.delete_object(f"{folder}/{name}")
        return modified_at

    def check_store(self) -> None:
        """Raise an OutputError if the store cannot keep two runs apart."""
        self.store.check_create_only(f"_lease/probe-{uuid.uuid4().hex}")

    @property
    def parts_path(self) -> str:
        """A pattern of the parts, for messages."""
        return f"{self.store.path}/{self._get_part_path('*')}"

    @property
    def dead_letters_path(self) -> str:
        """A pattern of the dead letters, for messages."""
        return f"{self.store.path}/{self._get_dead_letter_path('*.parquet')}"

    def list_parts(self) -> PartListing:
        """Every committed part. A run lists them once, and adds what it commits."""
        return self.store.collect_objects(f"data/fp={self.fingerprint}", PartListing.collect, HEX_DIGITS)

    def find_parts(self, names: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """A mask of the named parts that are committed, see ChunkTable.part_names."""
        if len(names) > MAX_PARTS_LOOKED_UP:
            return self.list_parts().hold(names)
        parts = [decode_name(name) for name in names.tolist()]
        return np.fromiter(map_in_threads(lambda part: self.store.has_object(self._get_part_path(part)), parts), bool)

    def read_part(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part. Columns that it lacks, because an earlier version wrote it, are left out."""
        file = pq.ParquetFile(io.BytesIO(self.store.read_object(self._get_part_path(part))))
        return file.read(columns and [name for name in columns if name in file.schema_arrow.names])

    def read_info(self, part: str) -> ObjectInfo:
        return self.store.read_info(self._get_part_path(part))

    def read_footer(self, part: str) -> PartFooter:
        """The row count and the commit note, without the rows."""
        path = self._get_part_path(part)
        metadata = self.store.read_parquet_metadata(path)
        note = (metadata.metadata or {}).get(COMMIT_NOTE_KEY)
        if note is None:
            raise OutputError(
                f"{self.store.path}/{path} was rewritten by another program, so nobody knows which rows failed; "
                "delete it, and its rows are asked again"
            )
        return PartFooter(metadata.num_rows, json.loads(note))

    def commit_part(
        self, part: str, rows: pa.Table, note: Mapping[str, Any], check_allowed: Callable[[], object]
    ) -> bool:
        """Create a part; False if it exists already."""
        return self.store.create_object(self._get_part_path(part), encode_parquet(rows, note), check_allowed)

    def delete_part(self, part: str) -> None:
        self.store.delete_object(self._get_part_path(part))

    def list_dead_letters(self) -> DeadLetterListing:
        return self.store.collect_objects(f"errors/fp={self.fingerprint}", DeadLetterListing, HEX_DIGITS)

    def write_dead_letters(self, part: str, rows: pa.Table, check_allowed: Callable[[], object]) -> str:
        """Write the failed rows of a part that is about to be committed. Returns the file's name."""
        name = f"{part}-{uuid.uuid4().hex[:8]}.parquet"
        data = encode_parquet(rows, {"key": part})
        self.store.create_object(self._get_dead_letter_path(name), data, check_allowed)
        return name

    def read_dead_letters(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        path = self._get_dead_letter_path(name)
        try:
            return pq.read_table(io.BytesIO(self.store.read_object(path)), columns=columns)
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            chunk_name, _ = split_part_name(get_part_of_dead_letters(name))
            raise OutputError(
                f"{self.store.path}/{path} was deleted, so nobody knows which rows failed; "
                f"delete {self._get_part_path(f'{chunk_name}*')} to ask them again"
            ) from error

    def delete_dead_letters(self, name: str) -> None:
        self.store.delete_object(self._get_dead_letter_path(name))

    def has_question(self) -> bool:
        """Whether a run of this question has begun."""
        return self.store.has_object(self._question_path)

    def list_summaries(self, kind: SummaryKind) -> dict[str, ObjectInfo]:
        """What output/part_index.py keeps here."""
        return self.store.list_objects(f"_index/fp={self.fingerprint}/{kind}")

    def read_summary(self, kind: SummaryKind, name: str) -> bytes:
        return self.store.read_object(f"_index/fp={self.fingerprint}/{kind}/{name}")

    def delete_summary(self, kind: SummaryKind, name: str) -> None:
        self.store.delete_object(f"_index/fp={self.fingerprint}/{kind}/{name}")

    def write_summary(self, kind: SummaryKind, name: str, data: bytes) -> None:
        self.store.create_object(f"_index/fp={self.fingerprint}/{kind}/{name}.parquet", data)

    def read_question(self) -> dict[str, Any]:
        """The inputs of the fingerprint."""
        question = self._read_question_object()
        return {name: value for name, value in question.items() if name not in NotedChunkSize._fields}

    def read_chunk_size(self) -> NotedChunkSize:
        """What the first run noted. Earlier versions did not."""
        question = self._read_question_object()
        return NotedChunkSize(*map(question.get, NotedChunkSize._fields))

    def write_question(self, fingerprint_inputs: Mapping[str, Any], chunk_size: NotedChunkSize = NOTHING_NOTED) -> None:
        noted = {name: rows for name, rows in chunk_size._asdict().items() if rows is not None}
        text = json.dumps({**fingerprint_inputs, **noted}, indent=2, default=str)
        self.store.create_object(self._question_path, text.encode())

    def write_score(self, truth_hash: str, text: str) -> str:
        """Returns where it is."""
        name = f"scores/{self.fingerprint}/{truth_hash}.json"
        self.store.overwrite(name, text.encode())
        return f"{self.store.path}/{name}"

    def read_newest_score(self) -> dict[str, Any] | None:
        """By the time that scores note, not by the clock of the store, which copying changes."""
        folder = f"scores/{self.fingerprint}"
        texts = [self.store.read_object(f"{folder}/{name}") for name in sorted(self.store.list_names(folder))]
        scores: list[dict[str, Any]] = [json.loads(text) for text in texts]
        return max(scores, key=lambda score: str(score.get("time", "")), default=None)

    @property
    def _question_path(self) -> str:
        return f"questions/{self.fingerprint}.json"

    def _read_question_object(self) -> dict[str, Any]:
        question: dict[str, Any] = json.loads(self.store.read_object(self._question_path))
        return question

    def _get_part_path(self, part: str) -> str:
        return f"data/fp={self.fingerprint}/{part}.parquet"

    def _get_dead_letter_path(self, name: str) -> str:
        return f"errors/fp={self.fingerprint}/{name}"


def list_questions(store: OutputStore) -> set[str]:
    """The fingerprints of all questions that an output folder has answers to."""
    return {name.removesuffix(".json") for name in store.list_names("questions")}


def read_class_names(store: OutputStore) -> tuple[int, list[str]]:
    """The number of the newest list, and the list. Each list begins with the one before."""
    numbers = [int(name.removesuffix(".json")) for name in store.list_names("classes")]
    number = max(numbers, default=0)
    names: list[str] = json.loads(store.read_object(f"classes/{number:06}.json")) if number else []
    return number, names


def add_class_names(store: OutputStore, found: Iterable[str]) -> list[str]:
    """The list with these names behind those that it has. Creating the next list makes two exports take turns."""
    while True:
        number, names = read_class_names(store)
        longer = list(dict.fromkeys([*names, *found]))
        data = json.dumps(longer, ensure_ascii=False, indent=0).encode()
        if longer == names or store.create_object(f"classes/{number + 1:06}.json", data):
            return longer


def list_runs(store: OutputStore, document: RunDocument) -> list[str]:
    """The runs that wrote a document, newest first."""
    names = store.list_names("runs")
    return sorted((name.partition("/")[0] for name in names if name.endswith(f"/{document}.json")), reverse=True)


def read_run_document(store: OutputStore, run_id: str, document: RunDocument) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(store.read_object(f"runs/{run_id}/{document}.json"))
    return values


def write_run_document(store: OutputStore, run_id: str, document: RunDocument, text: str) -> None:
    store.create_object(f"runs/{run_id}/{document}.json", text.encode())


def encode_parquet(table: pa.Table, note: Mapping[str, Any]) -> bytes:
    """Without rows there is no row group either: some readers, such as Hugging Face's, fail on an empty one."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({COMMIT_NOTE_KEY: json.dumps(note)})
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        if table.num_rows:
            writer.write_table(table)
    return bytes(sink.getvalue())
