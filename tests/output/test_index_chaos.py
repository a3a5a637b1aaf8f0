"""Whatever happens to parts and their summaries, in whatever order, readers learn what the parts themselves say."""

from __future__ import annotations

import os
import random
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pipeline.output.dataset import Dataset, PartFooter
from pipeline.output.part_index import IndexWriter, hash_part_rows, read_footers, read_row_hashes
from pipeline.output.store import OutputStore

COLUMNS = pa.schema([("id", pa.string()), ("question", pa.string())])


class IndexedOutput:
    """An output, and what its parts hold. Each public method is something that happens to it."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._rng, self._clock, self._runs = folder, random.Random(seed), count(10**9), count()
        self._dataset = Dataset(OutputStore(str(folder)), "f")
        self._tables: dict[str, pa.Table] = {}
        self._start_run()

    def commit(self) -> None:
        part = self._write_part()
        self._index.add_part(part, self._dataset.read_info(part), *self._read_part(part))

    def be_killed_after_a_commit(self) -> None:
        """Before a summary describes it."""
        self._write_part()
        self._start_run()

    def be_killed_between_summaries(self) -> None:
        self._index.flush(self._rng.choice(["footers", "rows"]))
        self._start_run()

    def end_run(self) -> None:
        self._index.add_missing_parts(self._dataset.list_parts())
        list(read_row_hashes(self._dataset, self._dataset.list_parts(), self._index))
        self._index.flush_all()
        self._start_run()

    def rewrite_part(self) -> None:
        if self._tables:
            part = self._rng.choice(sorted(self._tables))
            self._dataset.delete_part(part)
            self._write_part(part)

    def delete_part(self) -> None:
        if self._tables:
            part = self._rng.choice(sorted(self._tables))
            self._dataset.delete_part(part)
            del self._tables[part]

    def lose_summary(self) -> None:
        for path in self._pick_summary():
            path.unlink()

    def cut_summary(self) -> None:
        for path in self._pick_summary():
            os.truncate(path, self._rng.randrange(path.stat().st_size + 1))

    def damage_summary(self) -> None:
        for path in self._pick_summary():
            data = bytearray(path.read_bytes())
            for place in self._rng.choices(range(len(data)), k=self._rng.choice([1, 8])) if data else ():
                data[place] ^= 1 << self._rng.randrange(8)
            path.write_bytes(data)

    def _start_run(self) -> None:
        self._index = IndexWriter(self._dataset, f"run-{next(self._runs)}")

    def _write_part(self, name: str | None = None) -> str:
        part, rows = name or f"{self._rng.randrange(16**24):024x}", self._rng.randrange(4)
        values = [[f"r{self._rng.randrange(99)}" for _ in range(rows)], ["q"] * rows]
        self._tables[part] = pa.table(values, schema=COLUMNS)
        assert self._dataset.commit_part(part, self._tables[part], {"answered": rows}, lambda: None)
        os.utime(self._folder / f"data/fp=f/{part}.parquet", (0, next(self._clock)))
        return part

    def _read_part(self, part: str) -> tuple[int, dict[str, int], bytes]:
        table = self._tables[part]
        return table.num_rows, {"answered": table.num_rows}, hash_part_rows(table).tobytes()

    def _pick_summary(self) -> list[Path]:
        """None where there is none."""
        paths = sorted((self._folder / "_index").rglob("*.parquet"))
        return [self._rng.choice(paths)] if paths else []


def check_readers(output: IndexedOutput) -> None:
    dataset, tables = output._dataset, output._tables
    parts = dataset.list_parts()
    footers = list(read_footers(dataset, parts))
    assert sorted(footers) == [
        (part, PartFooter(table.num_rows, {"answered": table.num_rows})) for part, table in sorted(tables.items())
    ]
    for found, part in zip(read_row_hashes(dataset, parts), sorted(tables), strict=True):
        np.testing.assert_array_equal(found, hash_part_rows(tables[part]))


HAPPENINGS = [name for name in vars(IndexedOutput) if not name.startswith("_")]


@pytest.mark.usefixtures("short_waits")  # for an empty object, which may be one that is being written
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.lists(some.sampled_from(HAPPENINGS), min_size=8, max_size=20),
    some.integers(0, 10**6),
)
def test_summaries_never_change_what_readers_learn(happenings, seed):
    with tempfile.TemporaryDirectory() as folder:
        output = IndexedOutput(Path(folder), seed)
        for name in ("commit", "commit", *happenings):
            getattr(output, name)()
        check_readers(output)
