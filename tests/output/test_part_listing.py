"""The arrays behave as the dictionary that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline.manifest.hash_arrays import NAME_BYTES
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_listing import (
    DeadLetterListing,
    PartListing,
    PartRecorder,
    decode_name,
    encode_name,
    split_part_name,
)

CHUNKS = ["00" * 12, "000000000000000000000001", "0a00000000000000000000ff", "ab" * 12, "ab" * 11 + "00", "ff" * 12]
NAMES = some.builds(
    lambda chunk, generation: f"{chunk}.g{generation}" if generation else chunk,
    some.sampled_from(CHUNKS),
    some.sampled_from([0, 1, 2, 10, 255, 256]),
)
INFOS = some.builds(ObjectInfo, some.integers(0, 2**31), some.none() | some.floats(0, 2e9))


def list_parts(parts):
    entries = [(f"{part}.parquet", info) for part, info in parts.items()]
    return PartListing.collect([entries[::2], [], entries[1::2]])


def to_names(parts):
    return np.array([encode_name(part) for part in parts], f"S{NAME_BYTES}")


@settings(deadline=None)
@given(some.dictionaries(NAMES, INFOS, max_size=20), some.dictionaries(NAMES, INFOS), some.lists(NAMES))
def test_a_listing_is_a_sorted_mapping(parts, later_parts, other_names):
    later_parts = {part: info for part, info in later_parts.items() if part not in parts}
    listing = list_parts(parts)
    assert dict(listing) == parts
    assert list(listing) == sorted(parts, key=split_part_name)
    assert {name: listing.get(name) for name in other_names} == {name: parts.get(name) for name in other_names}
    assert dict(listing.add(list_parts(later_parts))) == parts | later_parts
    assert dict(listing.remove(other_names)) == {part: parts[part] for part in parts if part not in other_names}
    chunks = {split_part_name(name)[0] for name in other_names}
    others = {part: info for part, info in parts.items() if split_part_name(part)[0] not in chunks}
    assert dict(listing.select_other_chunks(to_names(chunks))) == others
    assert listing.hold(to_names(other_names)).tolist() == [name in parts for name in other_names]
    recorder = PartRecorder()
    for part, info in parts.items():
        recorder.add(part, info)
    assert dict(recorder.list_parts()) == parts
    since = {part: info for part, info in parts.items() if info.modified_at is None or info.modified_at >= 1e9}
    assert dict(listing.select_since(1e9)) == since
    for chunk in CHUNKS:
        generations = sorted((part for part in parts if split_part_name(part)[0] == chunk), key=split_part_name)
        assert listing.list_generations(chunk) == generations


@pytest.mark.parametrize(
    "name",
    [
        "_SUCCESS",
        "notes.parquet",
        CHUNKS[3],
        f"{CHUNKS[3]}.g0.parquet",
        f"{'AB' * 12}.parquet",
        f"x/{CHUNKS[3]}.parquet",
    ],
)
def test_an_object_of_another_name_is_no_part(name):
    listing = PartListing.collect([[(name, ObjectInfo(1, 1.0))]])
    assert not listing
    assert "" not in listing
    assert name.removesuffix(".parquet") not in listing


def test_a_part_beyond_four_gigabytes_is_still_a_part():
    assert list_parts({CHUNKS[0]: ObjectInfo(2**40, 1.0)})[CHUNKS[0]].size == 2**32 - 1


def test_files_with_dead_letters_are_listed_by_chunk():
    files = [f"{CHUNKS[3]}.g2-0000000f.parquet", f"{CHUNKS[3]}-ffffffff.parquet", f"{CHUNKS[0]}-00000000.parquet"]
    listing = DeadLetterListing([[(name, ObjectInfo(1, None)) for name in [*files, "x-0000000f.parquet", "_SUCCESS"]]])
    assert list(listing) == files[::-1]
    assert [decode_name(name) for name in listing.chunk_names.tolist()] == [CHUNKS[0], CHUNKS[3]]
