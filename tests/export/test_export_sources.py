"""The sources of an export are made when they are asked for, and mean what a list of them means."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipeline.export.export_sources import (
    ExportSource,
    ExportSources,
    group_sources,
    hash_json,
    hash_sources,
)
from pipeline.export.group_writer import count_max_rows
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_listing import PartListing
from pipeline.run.orphans import OrphanRows
from pipeline.run.resume import ResumePlan

FILE = ManifestFile("file:///m.parquet", "parquet")
CHUNKS = [Chunk(FILE, (10 * number, 10 * number + 10), f"{number:024x}", 10) for number in range(5)]
ORPHANS = ["f" * 23 + str(number) for number in range(3)]
PARTS = {
    CHUNKS[0].name: 7,
    f"{CHUNKS[0].name}.g1": 5,
    CHUNKS[2].name: 11,
    CHUNKS[4].name: 1,
    **dict.fromkeys(ORPHANS, 3),
}


@pytest.fixture
def sources():
    parts = PartListing.collect([[(f"{part}.parquet", ObjectInfo(size, 1.0)) for part, size in PARTS.items()]])
    chunks = ChunkTable.collect(CHUNKS)
    plan = ResumePlan(parts, chunks, chunks, OrphanRows(), rows=50, duplicate_rows=0)
    made = ExportSources(plan)
    assert len(made) == 3
    made.add_foreign_rows(Counter({1: 4, 4: 2}), ORPHANS)
    return made


def test_sources_are_answered_chunks_and_the_orphans_that_answer_a_row(sources):
    expected = [
        ExportSource(0, (CHUNKS[0].name, f"{CHUNKS[0].name}.g1"), 12, CHUNKS[0], 0),
        ExportSource(1, (CHUNKS[2].name,), 11, CHUNKS[2], 4),
        ExportSource(2, (CHUNKS[4].name,), 1, CHUNKS[4], 0),
        ExportSource(4, (ORPHANS[1],), 3, None, 2),
    ]
    assert list(sources) == [sources[index] for index in range(4)] == expected
    assert list(sources[1:3]) == expected[1:3]
    assert [source.max_rows for source in sources] == sources.max_rows.tolist() == [10, 14, 10, 2]
    assert (sources[1:4].max_rows, count_max_rows(sources[1:4]), count_max_rows([*sources])) == (26, 26, 36)
    with pytest.raises(IndexError):
        sources[4]


def test_no_source_is_made_to_name_sources_and_count_their_rows(sources, monkeypatch):
    monkeypatch.delattr(ExportSources, "_build")
    assert (len([*sources.identify()]), sources[:].max_rows) == (4, 36)


def test_the_hash_of_sources_is_that_of_earlier_versions(sources):
    parts = [part for source in sources for part in source.parts]
    identities = [(source.parts, source.size_bytes) for source in sources]
    assert hash_sources("d", sources.identify()) == (hash_json(["d", identities]), len(parts), 27)
    assert [*sources.identify(range(1, 3))] == identities[1:3]
    assert hash_sources("d", [])[0] == hash_json(["d", []])


@settings(deadline=None)
@given(some.lists(some.integers(1, 9), max_size=12), some.integers(1, 20))
def test_groups_are_consecutive_and_as_large_as_the_limit_allows(sizes, limit):
    groups = list(group_sources(sizes, limit))
    assert [index for group in groups for index in group] == [*range(len(sizes))]
    assert all(groups)
    totals = [sum(sizes[index] for index in group) for group in groups]
    assert all(total <= limit or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert all(total + sizes[group.stop] > limit for total, group in zip(totals, groups[:-1], strict=False))
