"""The parts and the dead letters of a question as sorted arrays: ten million parts take 26 bytes each.

The first 14 bytes of a record are the name of a part: the chunk's, which is a hash, and the generation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.hash_arrays import BLOCK_LENGTH, HASH_BYTES, NAME_BYTES, are_among
from pipeline.output.listing import ObjectInfo, Page

PART_NAME = re.compile(r"([0-9a-f]{24})(?:\.g([1-9]\d{0,3}))?")
DEAD_LETTERS_SUFFIX = re.compile(r"-([0-9a-f]{8})\.parquet$")
NAME_FIELDS = [("chunk", f"S{HASH_BYTES}"), ("generation", ">u2")]  # big-endian, so that their bytes sort as they do
PART_DTYPE = np.dtype([*NAME_FIELDS, ("size", "<u4"), ("modified_at", "<f8")])
DEAD_LETTERS_DTYPE = np.dtype([*NAME_FIELDS, ("suffix", ">u4")])
MAX_SIZE = 2**32 - 1  # larger parts count as this large
MAX_GENERATION = 2**16 - 1
HEX_DIGITS = "0123456789abcdef"  # that names begin with

Records = NDArray[np.void]


class PartListing(Mapping[str, ObjectInfo]):
    """Behaves as a mapping by the part's name, in the order of names and generations."""

    def __init__(self, records: Records):
        self.records = records
        self.names = view_names(records)

    @classmethod
    def collect(cls, pages: Iterable[Page]) -> PartListing:
        """From the pages of a listing. Objects that are no parts are left out."""
        return cls(collect_records(pages, PART_DTYPE, encode_part))

    @classmethod
    def empty(cls) -> PartListing:
        return cls.collect(())

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return format_names(self.records)

    def __getitem__(self, part: str) -> ObjectInfo:
        name = encode_name(part)
        position = int(np.searchsorted(self.names, name))
        if position == len(self.names) or self.names[position] != name.rstrip(b"\0"):
            raise KeyError(part)
        *_, size, modified_at = self.records[position].item()
        return ObjectInfo(size, None if math.isnan(modified_at) else modified_at)

    def locate(self, parts: Sequence[str]) -> NDArray[np.int64]:
        """The positions of the records of these parts; -1 for those that are not listed."""
        names = np.array([encode_name(part) for part in parts], f"S{NAME_BYTES}")
        if not len(self.names):
            return np.full(len(names), -1)
        positions = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        return np.where(self.names[positions] == names, positions, -1)

    def list_generations(self, chunk_name: str) -> list[str]:
        """The parts of a chunk, the oldest first."""
        (start,), (end,) = self.locate_generations(np.array([encode_name(chunk_name)]))
        return self.list_names(start, end)

    def list_names(self, start: int, end: int) -> list[str]:
        return list(format_names(self.records[start:end]))

    def locate_generations(self, names: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the parts of each chunk start and end, by the chunks' names in bytes."""
        bounds = np.zeros(len(names), NAME_FIELDS)
        bounds["chunk"] = names.astype(f"S{HASH_BYTES}")
        starts = np.searchsorted(self.names, bounds.view(f"S{NAME_BYTES}"))
        bounds["generation"] = MAX_GENERATION
        return starts, np.searchsorted(self.names, bounds.view(f"S{NAME_BYTES}"))

    def list_retried_chunks(self) -> NDArray[np.bytes_]:
        """The names, in bytes, of the chunks whose failed rows were asked again."""
        return np.unique(self.records["chunk"][self.records["generation"] > 0])

    def hold(self, names: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """A mask of the names of parts that are listed, see ChunkTable.part_names."""
        return are_among(names, self.names)

    def select_other_chunks(self, names: NDArray[np.bytes_]) -> PartListing:
        """The parts that belong to none of the chunks with these names."""
        hashes = np.sort(names.astype(f"S{HASH_BYTES}"))
        return PartListing(self.records[~are_among(self.records["chunk"], hashes)])

    def select(self, parts: Sequence[str]) -> PartListing:
        """Those of the parts that are listed."""
        positions = np.unique(self.locate(parts))
        return PartListing(self.records[positions[positions >= 0]])

    def select_at(self, positions: Sequence[int]) -> PartListing:
        return PartListing(self.records[list(positions)])

    def select_since(self, moment: float) -> PartListing:
        """The parts that were not modified before this moment, as far as the store tells."""
        return PartListing(self.records[~(self.records["modified_at"] < moment)])

    def remove(self, parts: Sequence[str]) -> PartListing:
        names = np.array([encode_name(part) for part in parts], f"S{NAME_BYTES}")
        return PartListing(self.records[~are_among(self.names, np.sort(names))])

    def select_new(self, before: PartListing) -> PartListing:
        """The parts that were not there before."""
        return PartListing(self.records[~are_among(self.names, before.names)])

    def select_newest(self, count: int) -> list[str]:
        """The parts that were modified last, the newest at the end."""
        order = np.argsort(self.records["modified_at"], kind="stable")[-count:]
        return list(format_names(self.records[order]))

    def add(self, others: PartListing) -> PartListing:
        return PartListing(sort_records(np.concatenate([self.records, others.records], dtype=PART_DTYPE)))


class PartRecorder:
    """Collects parts one by one, in as much memory as a listing of them."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, part: str, info: ObjectInfo) -> None:
        self.data += np.array([encode_info(encode_name(part), info)], PART_DTYPE).tobytes()

    def list_parts(self) -> PartListing:
        return PartListing(sort_records(np.frombuffer(bytearray(self.data), PART_DTYPE)))


class DeadLetterListing:
    """The names of files with dead letters, including those that no commit names."""

    def __init__(self, pages: Iterable[Page]):
        self.records = collect_records(pages, DEAD_LETTERS_DTYPE, encode_dead_letters)

    def __iter__(self) -> Iterator[str]:
        for part, suffix in zip(format_names(self.records), self.records["suffix"], strict=True):
            yield f"{part}-{suffix:08x}.parquet"

    @property
    def chunk_names(self) -> NDArray[np.bytes_]:
        """Each once, sorted, in bytes."""
        return np.unique(self.records["chunk"])


def collect_records(
    pages: Iterable[Page], dtype: np.dtype[Any], encode: Callable[[str, ObjectInfo], tuple[Any, ...] | None]
) -> Records:
    data = bytearray()  # it grows without a copy of its own
    for page in pages:
        data += np.array([row for name, info in page if (row := encode(name, info))], dtype).tobytes()
    return sort_records(np.frombuffer(data, dtype))


def sort_records(records: Records) -> Records:
    """In place, as bytes: numpy compares records field by field, which takes a hundred times as long."""
    records.view(f"S{records.itemsize}").sort()
    return records


def view_names(records: Records) -> NDArray[np.bytes_]:
    dtype = np.dtype({"names": ["name"], "formats": [f"S{NAME_BYTES}"], "offsets": [0], "itemsize": records.itemsize})
    names: NDArray[np.bytes_] = records.view(dtype)["name"]
    return names


def encode_name(part: str) -> bytes:
    """Empty if this cannot be the name of a part."""
    match = PART_NAME.fullmatch(part)
    return bytes.fromhex(match[1]) + int(match[2] or 0).to_bytes(2, "big") if match else b""


def decode_name(name: bytes) -> str:
    """
    >>> decode_name(encode_name("00112233445566778899aabb.g3")), decode_name(encode_name("00112233445566778899aa00"))
    ('00112233445566778899aabb.g3', '00112233445566778899aa00')
    """
    name = name.ljust(NAME_BYTES, b"\0")  # arrays leave out zeros at the end
    generation = int.from_bytes(name[HASH_BYTES:], "big")
    return f"{name[:HASH_BYTES].hex()}.g{generation}" if generation else name[:HASH_BYTES].hex()


def encode_part(file: str, info: ObjectInfo) -> tuple[Any, ...] | None:
    name = encode_name(file.removesuffix(".parquet"))
    if not name or not file.endswith(".parquet"):
        return None
    return encode_info(name, info)


def encode_info(name: bytes, info: ObjectInfo) -> tuple[Any, ...]:
    modified_at = math.nan if info.modified_at is None else info.modified_at
    return name[:HASH_BYTES], int.from_bytes(name[HASH_BYTES:], "big"), min(info.size, MAX_SIZE), modified_at


def encode_dead_letters(file: str, _: ObjectInfo) -> tuple[Any, ...] | None:
    name, suffix = encode_name(get_part_of_dead_letters(file)), DEAD_LETTERS_SUFFIX.search(file)
    if not name or not suffix:
        return None
    return name[:HASH_BYTES], int.from_bytes(name[HASH_BYTES:], "big"), int(suffix[1], 16)


def format_names(records: Records) -> Iterator[str]:
    for start in range(0, len(records), BLOCK_LENGTH):
        block = records[start : start + BLOCK_LENGTH]
        hashes = np.ascontiguousarray(block["chunk"]).tobytes().hex()
        for number, generation in enumerate(block["generation"].tolist()):
            chunk_name = hashes[2 * HASH_BYTES * number : 2 * HASH_BYTES * (number + 1)]
            yield f"{chunk_name}.g{generation}" if generation else chunk_name


def split_part_name(part: str) -> tuple[str, int]:
    """The chunk's name and the generation.

    >>> split_part_name("5f2a"), split_part_name("5f2a.g12")
    (('5f2a', 0), ('5f2a', 12))
    """
    chunk_name, _, generation = part.partition(".g")
    return chunk_name, int(generation or 0)


def get_part_of_dead_letters(name: str) -> str:
    """
    >>> get_part_of_dead_letters("5f2a.g1-0b7c8d9e.parquet")
    '5f2a.g1'
    """
    return name.rpartition("-")[0]
