"""Which chunks are left: after crashes, and as a manifest changes."""

from __future__ import annotations

from itertools import count

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import StoppedError
from pipeline.manifest.sources.parquet import ParquetSource
from pipeline.prepare import Preparer


def remove_parts_with(desk, wanted):
    for path in (desk.folder / "out/data").rglob("*.parquet"):
        if wanted in pq.ParquetFile(path).read(columns=["id"])["id"].to_pylist():
            path.unlink()


def test_a_question_asked_twice_is_not_lost_when_the_chunk_that_asked_it_first_was_not_committed(desk):
    x, y, z = desk.draw(3)
    desk.manifest([x, y, x, z])
    assert desk.run(output={"chunk_rows": 2}) == 0
    remove_parts_with(desk, "r0")  # a crash before the first chunk was committed
    assert desk.run(output={"chunk_rows": 2}) == 0
    assert desk.ids() == ["r0", "r1", "r2"]


def test_a_question_asked_twice_is_not_lost_when_its_first_place_leaves_the_manifest(desk):
    x, y, z = desk.draw(3)
    desk.manifest([x, y, x, z])
    assert desk.run(output={"chunk_rows": 2}) == 0
    remove_parts_with(desk, "r0")
    desk.manifest([x, z])
    assert desk.run(output={"chunk_rows": 2}) == 0
    assert desk.ids() == ["r0", "r2"]


def test_a_question_that_moves_to_the_front_of_the_manifest_is_not_asked_again(desk):
    rows = desk.draw(4)
    desk.manifest(rows)
    assert desk.run(output={"chunk_rows": 2}) == 0
    desk.manifest([rows[3], *rows])
    assert desk.run(output={"chunk_rows": 2}) == 0
    assert desk.ids() == ["r0", "r1", "r2", "r3"]
    assert "4 done before; 0 to do" in desk.said[0]


def test_rows_are_known_again_however_the_manifest_is_cut_and_ordered(desk):
    rows = desk.draw(9)
    desk.manifest(rows[:7])
    assert desk.run(output={"chunk_rows": 3}) == 0
    desk.manifest(rows[::-1])
    assert desk.run(output={"chunk_rows": 4}) == 0
    assert desk.ids() == [f"r{n}" for n in range(9)]
    assert "7 done before; 2 to do" in desk.said[0]


def test_a_limit_counts_what_is_repeated_before_it_and_nothing_after(desk):
    rows = desk.draw(4)
    desk.manifest([rows[0], rows[0], rows[1], rows[2], rows[0], rows[3]])
    assert desk.run(limit=3) == 0
    assert desk.ids() == ["r0", "r1"]
    assert "2 rows, 1 asked twice" in desk.said[0]


def test_a_manifest_that_changes_under_a_run_stops_it(desk, monkeypatch):
    rows = desk.draw(6)
    desk.manifest(rows)
    prepare = Preparer.prepare_chunk

    def rewritten(self, chunk, *more):
        desk.manifest(rows[::-1])
        return prepare(self, chunk, *more)

    monkeypatch.setattr(Preparer, "prepare", rewritten)
    with pytest.raises(StoppedError, match=r"m\.parquet was changed during the run; run the same command again"):
        desk.run()
    assert desk.parts() == {}


@pytest.mark.usefixtures("hurry")
def test_a_store_that_stumbles_while_a_run_reads_its_manifest_is_waited_for(desk, monkeypatch):
    read, calls = ParquetSource.read_span, count()

    def stumble(source, span, columns=None):
        table = read(source, span, columns)
        if next(calls) in (2, 3, 5):  # two to plan; then the first chunk twice, and the second
            raise ConnectionResetError
        return table

    monkeypatch.setattr(ParquetSource, "read", stumble)
    desk.manifest(desk.draw(8))
    assert desk.run() == 0
    assert desk.ids() == [f"r{number}" for number in range(8)]
    assert next(calls) == 7


def test_a_store_that_is_gone_while_a_run_plans_is_told_in_a_sentence(desk, monkeypatch):
    def lost(source, span, columns=None):
        raise ConnectionResetError

    monkeypatch.setattr(ParquetSource, "read", lost)
    desk.manifest(desk.draw(2))
    with pytest.raises(StoppedError, match=r"m\.parquet cannot be read \(ConnectionResetError\); what was committed"):
        desk.run()


def test_a_manifest_that_is_taken_away_under_a_run_stops_it(desk, monkeypatch):
    prepare = Preparer.prepare_chunk

    def gone(self, chunk):
        (desk.folder / "m.parquet").unlink()
        return prepare(self, chunk)

    monkeypatch.setattr(Preparer, "prepare", gone)
    desk.manifest(desk.draw(2))
    with pytest.raises(StoppedError, match=r"m\.parquet cannot be read \(No such file or directory\); what was"):
        desk.run()


def test_a_column_to_keep_that_is_not_there_is_named(desk, capsys):
    desk.manifest(desk.draw(1))
    path = desk.yaml()
    assert main(["check", str(path), "--set", "input.keep=nope"]) == 2
    assert "input.keep: the manifest has no column 'nope'" in capsys.readouterr().err
