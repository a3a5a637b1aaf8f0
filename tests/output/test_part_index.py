"""Summaries of parts save requests, and what is lost, stale or damaged in them changes no answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.inspect.status import read_status
from pipeline.output.dataset import Dataset
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_index import MAX_MERGED_BYTES, MIN_MERGED, choose_small, read_footers, select_missing
from pipeline.output.store import OutputStore

pytestmark = pytest.mark.process


@pytest.fixture
def output(workspace):
    """An output of 5 parts: 12 answers, 2 rows that failed, and 4 that failed and were answered when asked again."""
    rows = [*workspace.draw_images(13), *workspace.write_broken_images(3)]
    workspace.write_manifest(rows)
    (workspace.folder / "pics/12.png").rename(workspace.folder / "pics/away.png")
    assert workspace.run_job() == 3
    (workspace.folder / "pics/away.png").rename(workspace.folder / "pics/12.png")
    assert workspace.run_job(retry_kind="") == 3
    return workspace.folder / "out"


def list_summaries(output):
    return sorted((output / "_index").glob("*/footers/*.parquet"))


def list_part_files(output):
    return sorted((output / "data").rglob("*.parquet"))


def open_dataset(output):
    return Dataset(OutputStore(str(output)), next((output / "data").iterdir()).name.removeprefix("fp="))


def read_all(output):
    """What an output says, and the number of footers that were read for it."""
    read_metadata, read = OutputStore.read_parquet_metadata, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            OutputStore, "read_parquet_metadata", lambda store, name: (read.append(name), read_metadata(store, name))[1]
        )
        dataset = open_dataset(output)
        footers = dict(read_footers(dataset, dataset.list_parts()))
    return footers, len(read)


def check_answers_stay(output, missing):
    """As many footers are read as there are parts without a summary, and all is as without any summary."""
    found = read_all(output)
    status = asdict(read_status(str(output)))
    folder = output / "_index"
    if folder.exists():
        shutil.move(folder, output.parent / "index-away")
    without = read_all(output)
    assert found[0] == without[0]
    assert status == asdict(read_status(str(output)))
    assert (found[1], without[1]) == (missing, len(list_part_files(output)))
    if (output.parent / "index-away").exists():
        shutil.move(output.parent / "index-away", folder)


def test_nobody_reads_footers_of_parts_that_a_summary_describes(output):
    assert len(list_summaries(output)) == 2
    check_answers_stay(output, missing=0)


def test_status_reads_no_footer_of_a_failed_chunk_that_a_summary_describes(output, monkeypatch):
    failed = read_status(str(output)).wrong
    assert failed.total() == 3
    monkeypatch.setattr(OutputStore, "read_parquet_metadata", None)
    assert read_status(str(output)).wrong == failed


def test_a_summary_that_is_lost_or_damaged_costs_its_footers(output):
    first, second = list_summaries(output)
    second.unlink()
    check_answers_stay(output, missing=1)
    first.write_bytes(first.read_bytes()[:200] + b"PAR1")
    check_answers_stay(output, missing=5)
    first.unlink()
    check_answers_stay(output, missing=5)


def test_a_summary_of_a_part_that_was_deleted_or_rewritten_does_not_count(workspace, output):
    part = next(path for path in list_part_files(output) if pq.read_metadata(path).num_rows == 4)
    content = part.read_bytes()
    part.unlink()
    check_answers_stay(output, missing=0)
    part.write_bytes(content)
    os.utime(part, (1e9, 1e9))
    check_answers_stay(output, missing=1)
    part.unlink()
    before = list_summaries(output)
    assert workspace.run_job() == 3
    check_answers_stay(output, missing=0)
    for path in set(list_summaries(output)) - set(before):
        path.unlink()
    check_answers_stay(output, missing=1)


def test_the_next_run_describes_the_parts_of_a_run_that_was_killed(workspace):
    workspace.write_manifest(workspace.draw_images(80))
    path = workspace.write_job_file(engine={"delay_ms": 50})
    run = subprocess.Popen([sys.executable, "-m", "pipeline", "run", str(path), "--local"])
    while len(workspace.list_parts()) < 3:
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    output = workspace.folder / "out"
    assert not list_summaries(output)
    check_answers_stay(output, missing=len(workspace.list_parts()))
    assert workspace.run_job(engine={"delay_ms": 50}) == 0
    check_answers_stay(output, missing=0)
    dataset = open_dataset(output)
    assert not select_missing(dataset, dataset.list_parts())


def test_a_part_that_another_program_rewrote_is_named_and_stops_no_run(workspace, output):
    for summary in list_summaries(output):
        summary.unlink()
    part = next(path for path in list_part_files(output) if pq.read_metadata(path).num_rows == 4)
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)
    rows = pq.read_table(workspace.folder / "m.parquet").to_pylist()
    workspace.write_manifest([*rows, *workspace.draw_images(1, start=20)])
    assert workspace.run_job() == 3
    with pytest.raises(OutputError, match=r"was rewritten by another program, .* delete it, and its rows are asked"):
        read_all(output)


@pytest.mark.parametrize("lost", ["", "rows/*", "*/*"])
def test_orphans_are_read_whole_at_most_once(workspace, output, lost, monkeypatch):
    """The manifest is cut elsewhere, so no part belongs to one of its chunks."""
    for summary in (output / "_index").glob(f"*/{lost}") if lost else ():
        summary.unlink()
    read_part, read = Dataset.read_part, []
    monkeypatch.setattr(Dataset, "read_part", lambda *given: (read.append(given[1]), read_part(*given))[1])
    for read_parts, rows_left in ((len(list_part_files(output)) if lost else 0, 3), (0, 0)):
        read.clear()
        assert workspace.run_job(output={"chunk_rows": 5}) == 3
        assert any(f"16 rows, {16 - rows_left} done before" in line for line in workspace.messages)
        assert len(read) == read_parts
    assert len(workspace.read_answers()) == 13


def copy_summaries(output, count):
    """As if as many runs had described the same parts."""
    for path in sorted((output / "_index").rglob("*.parquet")):
        for number in range(count):
            shutil.copy(path, path.with_name(f"20000101T000000-{number:05}-{path.name}"))


def test_small_summaries_are_merged_by_the_next_run(workspace, output):
    copy_summaries(output, 10)
    assert len(list_summaries(output)) == 22
    assert workspace.run_job() == 3
    assert len(list_summaries(output)) == 1
    assert len(list((output / "_index").glob("*/rows/*.parquet"))) == 1
    check_answers_stay(output, missing=0)


def test_a_damaged_summary_is_not_merged_and_stops_no_run(workspace, output):
    copy_summaries(output, 10)
    list_summaries(output)[3].write_bytes(b"no parquet")
    assert workspace.run_job() == 3
    assert len(list_summaries(output)) == 2
    check_answers_stay(output, missing=0)


def test_only_as_many_small_summaries_are_merged_as_make_a_full_one():
    eighth = MAX_MERGED_BYTES["footers"] // MIN_MERGED

    def choose(sizes):
        infos = {f"{number:03}": ObjectInfo(size, 1.0) for number, size in enumerate(sizes)}
        return [int(name) for name in choose_small("footers", infos)]

    assert choose([10] * (MIN_MERGED - 1)) == []
    assert choose([10] * MIN_MERGED) == [*range(MIN_MERGED)]
    assert choose([eighth + 1, *[eighth] * 100]) == [*range(1, MIN_MERGED + 1)]
    assert choose([eighth + 1] * 100) == []


def test_readers_of_the_answers_do_not_see_summaries(output):
    assert pq.read_table(output / "data").num_rows == 13
    assert pq.ParquetDataset(output / "data").files == [str(path) for path in list_part_files(output)]
