"""A large chunk is answered in slices and committed whole; a stop commits the slices that are answered."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.answer import Answerer
from pipeline.errors import JobError, StoppedError
from pipeline.job import job_loader
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.run import chunk_size
from pipeline.run.preflight import build_run_context
from pipeline.run.resume import split_in_process
from pipeline.run.signals import StopSignals

SLICED = {"output": {"chunk_rows": 8, "slice_rows": 2}}
IDS = [f"r{number}" for number in range(20)]


@pytest.fixture
def stop_after(monkeypatch):
    """A function that has runs stopped after so many slices."""
    answer_items, counts = Answerer.answer_items, []
    signals: list[StopSignals] = []
    enter = StopSignals.__enter__

    def remember(self):
        signals.append(self)
        return enter(self)

    def stop(slices):
        def answer_and_stop(self, items):
            counts.append(len(items))
            if len(counts) == slices:
                signals[-1].request_stop("enough")
            return answer_items(self, items)

        monkeypatch.setattr(Answerer, "answer_items", answer_and_stop)
        monkeypatch.setattr(StopSignals, "__enter__", remember)
        return counts

    return stop


def test_slices_do_not_change_the_name_of_a_part_or_its_rows(workspace):
    workspace.write_manifest([*workspace.draw_images(18), *workspace.write_broken_images(2)])
    assert workspace.run_job(output={"chunk_rows": 8}) == 3
    whole_parts, whole_rows = workspace.list_parts(), workspace.list_answered_ids()
    path = str(workspace.folder / "sliced")
    assert workspace.run_job(output={"path": path, "chunk_rows": 8, "slice_rows": 2}) == 3
    assert workspace.list_parts("sliced").keys() == whole_parts.keys()
    assert workspace.list_answered_ids("sliced") == whole_rows
    assert [row["id"] for row in workspace.read_dead_letters("sliced")] == ["bad0", "bad1"]
    assert len(list((workspace.folder / "sliced/errors").rglob("*.parquet"))) == 1
    assert workspace.run_job(output={"path": path, "chunk_rows": 8, "slice_rows": 4}) == 3
    assert "20 rows, 20 done before" in workspace.messages[0]


def test_a_stop_commits_the_answered_slices_and_the_next_run_asks_the_others(workspace, stop_after):
    rows = workspace.draw_images(20)
    workspace.write_manifest([rows[0], *workspace.write_broken_images(1), *rows[1:]])
    counts = stop_after(6)  # of four in the first chunk
    with pytest.raises(StoppedError, match="enough"):
        workspace.run_job(**SLICED)
    assert counts == [2] * 6
    assert workspace.list_answered_ids() == sorted(IDS[:11])
    first_parts = workspace.list_parts()
    assert len(first_parts) == 2
    assert workspace.run_job(**SLICED) == 3
    assert "21 rows, 12 done before; 9 to do in 2 chunks" in workspace.messages[0]
    assert Counter(workspace.list_answered_ids()) == Counter(IDS)
    assert workspace.list_parts().items() > first_parts.items()
    assert workspace.run_job(**SLICED) == 3
    assert "0 to do" in workspace.messages[0]


def test_a_stop_keeps_no_failures_of_a_chunk_that_is_not_complete(workspace, stop_after):
    """The next run asks the failed rows again, with the rest of the chunk, so each fails once."""
    workspace.write_manifest([*workspace.write_broken_images(4), *workspace.draw_images(4)])
    stop_after(1)
    with pytest.raises(StoppedError):
        workspace.run_job(**SLICED)
    assert (workspace.list_parts(), workspace.read_dead_letters()) == ({}, [])
    assert workspace.run_job(**SLICED) == 3
    assert Counter(workspace.list_answered_ids()) == Counter(IDS[:4])
    assert [row["id"] for row in workspace.read_dead_letters()] == [f"bad{number}" for number in range(4)]


def test_failed_rows_of_a_large_chunk_are_asked_again_in_slices(workspace, monkeypatch):
    rows = workspace.draw_images(8)
    paths = [workspace.folder / row["image"] for row in rows]
    pictures = [path.read_bytes() for path in paths]
    for path in paths[1:]:
        path.write_bytes(b"no picture")
    workspace.write_manifest(rows)
    assert workspace.run_job(**SLICED) == 3
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(picture)
    answer_items, counts = Answerer.answer_items, []
    monkeypatch.setattr(
        Answerer, "answer_items", lambda self, items: (counts.append(len(items)), answer_items(self, items))[1]
    )
    assert workspace.run_job(retry_kind="", **SLICED) == 0
    assert counts == [2, 2, 2, 1]
    assert workspace.list_answered_ids() == IDS[:8]
    assert len(workspace.list_parts()) == 2


def test_a_repeated_row_is_asked_once_whatever_slice_it_is_in(workspace):
    rows = workspace.draw_images(8)
    workspace.write_manifest([*rows[:3], rows[0], *rows[3:6], rows[5], *rows[6:], *rows])
    assert workspace.run_job(**SLICED) == 0
    assert Counter(workspace.list_answered_ids()) == Counter(IDS[:8])


def test_slices_must_divide_chunks(workspace):
    job = workspace.write_job_file(output={"chunk_rows": 8, "slice_rows": 3})
    with pytest.raises(JobError, match="slice_rows 3 does not divide chunk_rows 8"):
        job_loader.load_job(job)


BY_DEFAULT = {"output": {"chunk_rows": None}}


def choose_size(workspace):
    job = Job.model_validate(workspace.build_job(**BY_DEFAULT))
    files = list_manifest_files(job)
    return chunk_size.choose_chunk_size(build_run_context(job, files), files)


def test_a_large_manifest_makes_larger_parts_of_slices_of_the_same_size(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(20))
    monkeypatch.setattr(chunk_size, "compute_light_rows", lambda job: 2)
    monkeypatch.setattr(chunk_size, "MIN_PARTS", 6)
    assert choose_size(workspace)[:2] == (2, 2), "ten parts at most"
    monkeypatch.setattr(chunk_size, "MIN_PARTS", 3)
    assert choose_size(workspace)[:2] == (6, 2)
    assert choose_size(workspace).describe() == "chunks of 6 rows in slices of 2: the manifest has about 20 rows"
    monkeypatch.setattr(chunk_size, "MAX_SLICES", 2)
    assert choose_size(workspace)[:2] == (4, 2)


def test_later_runs_keep_the_size_that_the_first_run_of_a_large_manifest_has_noted(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(20))
    with monkeypatch.context() as patch:
        patch.setattr(chunk_size, "compute_light_rows", lambda job: 2)
        patch.setattr(chunk_size, "MIN_PARTS", 3)
        assert workspace.run_job(row_limit=1, **BY_DEFAULT) == 0
        assert workspace.run_job(**BY_DEFAULT) == 0
    assert workspace.messages[0].startswith("t: 20 rows, 1 done before; 19 to do in 4 chunks"), workspace.messages
    [question] = (workspace.folder / "out/questions").iterdir()
    noted = json.loads(question.read_text())
    assert (noted["chunk_rows"], noted["slice_rows"]) == (6, 2)
    workspace.write_manifest(workspace.draw_images(22))
    assert workspace.run_job(**BY_DEFAULT) == 0
    assert "22 rows, 20 done before; 2 to do in 1 chunk" in workspace.messages[0]
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(22))


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl", "m.csv"])
def test_slices_of_a_chunk_are_read_by_themselves(workspace, name):
    """Each holds the rows of the chunk that stand at its place, in the units of every source."""
    table = pa.table({"id": IDS, "image": [f"{row_id}.png" for row_id in IDS], "hint": ["h"] * 20})
    if name == "m.parquet":
        pq.write_table(table, workspace.folder / name, row_group_size=7)
    elif name == "m.csv":
        pa.csv.write_csv(table, workspace.folder / name)
    else:
        (workspace.folder / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    job = Job.model_validate(workspace.build_job(input={"manifest": str(workspace.folder / name)}, **SLICED))
    files = list_manifest_files(job)
    whole = Job.model_validate(
        workspace.build_job(input={"manifest": str(workspace.folder / name)}, output={"chunk_rows": 8})
    )
    chunks = [chunk for chunk, _ in split_in_process(job, files, None)]
    assert [chunk.name for chunk in chunks] == [chunk.name for chunk, _ in split_in_process(whole, files, None)]
    context = build_run_context(job, files)
    with_slices = [own for chunk in chunks for own in chunk.cut(2)]
    assert [own.row_count for own in with_slices] == [2] * 10
    assert files[0].open_source().estimate_rows() == 20
    with chunk_size.closing(chunk_size.Preparer(context)) as preparer:
        read = [[item.id for item, _ in preparer.read_items(own)] for own in with_slices]
    assert read == [IDS[first : first + 2] for first in range(0, 20, 2)]
