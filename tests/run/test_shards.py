"""Several drivers on one output, each on a shard of the manifest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoppedError
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.inspect.status import format_status, read_status, to_json_dict
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.row_keys import hash_to_hex
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.run import claims, lease
from pipeline.run.budget import find_share
from pipeline.run.lease import raise_if_taken_over
from pipeline.run.shards import Shard, count_rows_by_shard, find_shard_numbers
from tests.run.leases import TIMEOUT_S, WaitingRun, claim_on_another_machine, open_lease

SLOW = {"kind": "scripted", "default": "seen {id}", "slots": 1, "delay_ms": 60}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "POLL_INTERVAL_S", 0.05)
    return Dataset(OutputStore(str(tmp_path / "leases")), "f")


def read_shards(workspace):
    return [(shard.shard, shard.state, shard.left) for shard in read_status(str(workspace.folder / "out")).shards]


def export_table(workspace, name):
    """The exit code, and whether the export is marked as complete."""
    code = export_job(
        Job.model_validate(workspace.build_job()), str(workspace.folder / name), "table", ExportOptions(), print
    )
    return code, (workspace.folder / name / "_SUCCESS").exists()


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=8), unique=True, min_size=1), st.integers(1, 40))
def test_each_chunk_is_in_one_shard_whatever_has_happened_to_it(rows, total):
    for row in rows:
        chunk = Chunk(ManifestFile("m.parquet", "parquet"), (0, 4), hash_to_hex(row), 4)
        changed = replace(chunk, excluded_offsets=(0, 2))
        table = ChunkTable.collect([chunk, changed])
        number = 1 + int(chunk.rows_hash, 16) % total
        assert find_shard_numbers(table, total).tolist() == [number, number]
        assert [own for own in range(1, total + 1) if Shard(own, total).hold(table).all()] == [number]
        assert count_rows_by_shard(table, total)[number - 1] == 6


def test_shards_are_of_about_one_size():
    chunks = [Chunk(None, (0, 1), hash_to_hex(str(number).encode()), 1) for number in range(20_000)]
    sizes = Counter(find_shard_numbers(ChunkTable.collect(chunks), 8).tolist())
    assert sorted(sizes) == [*range(1, 9)]
    assert max(sizes.values()) < 1.06 * 20_000 / 8


@pytest.mark.process
def test_runs_on_two_shards_are_killed_and_resumed_and_answer_each_row_once(workspace):
    rows = workspace.draw_images(40)
    workspace.write_manifest([*rows, *rows[:7]])  # some rows are repeated, maybe on the other shard
    job = str(workspace.write_job_file(engine=SLOW))
    command = [sys.executable, "-m", "pipeline", "run", job, "--local", "--shard"]
    runs = [subprocess.Popen([*command, f"{number}/2"], stderr=subprocess.DEVNULL) for number in (1, 2)]
    try:
        while len(set(read_committing_runs(workspace))) < 2:
            assert all(run.poll() is None for run in runs)
            time.sleep(0.05)
    finally:
        for run in runs:
            run.send_signal(signal.SIGKILL)
            run.wait()
    before = workspace.list_parts()
    first, second = read_status(str(workspace.folder / "out")).shards
    states = (first.state, second.state)  # on a busy machine, one may have ended before the other committed anything
    assert "stopped" in states
    assert {*states} <= {"stopped", "done"}
    assert first.left + second.left == 40 - len(workspace.list_answered_ids()) > 0
    runs = [subprocess.Popen([*command, f"{n}/2"], stderr=subprocess.PIPE, text=True) for n in (1, 2)]
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert any("the other shards of 2 are done, too" in text for text in said)
    assert before.items() <= workspace.list_parts().items()
    assert Counter(workspace.list_answered_ids()) == Counter(row["id"] for row in rows)
    assert [(state, left) for _, state, left in read_shards(workspace)] == [("done", 0), ("done", 0)]
    assert workspace.run_job() == 0
    assert workspace.messages[0] == "t: 40 rows, 7 more that ask the same and share an answer, 40 done before; " + (
        "0 to do in 0 chunks"
    )


def read_committing_runs(workspace):
    return [row["run"] for row in workspace.read_answers()]


@pytest.mark.process
def test_an_export_is_complete_only_when_all_shards_are(workspace):
    workspace.write_manifest(workspace.draw_images(24))
    assert workspace.run_job(shard=(2, 3)) == 0
    own_rows = len(workspace.list_answered_ids())
    assert 0 < own_rows < 24
    assert workspace.messages[0].startswith(f"t, shard 2/3: {own_rows} rows; {own_rows} to do in ")
    assert f"{24 - own_rows} rows of other shards left: 1/3, 3/3" in workspace.messages
    assert [state for _, state, _ in read_shards(workspace)] == ["not begun", "done", "not begun"]
    assert export_table(workspace, "early") == (4, False)
    assert workspace.run_job(shard=(1, 3)) == 0
    assert workspace.run_job(shard=(3, 3)) == 0
    assert "the other shards of 3 are done, too" in workspace.messages
    status = read_status(str(workspace.folder / "out"))
    assert (status.answered, status.rows, status.left, status.repeated) == (24, 24, 0, 0)
    assert json.loads(json.dumps(to_json_dict(status)))["shards"][0]["shard"] == "1/3"
    assert "shards    3: 3 done" in "\n".join(format_status(status))
    assert export_table(workspace, "late") == (0, True)


@pytest.mark.process
def test_each_shard_retries_its_own_failed_rows(workspace):
    workspace.write_manifest(workspace.write_broken_images(32))
    codes = [workspace.run_job(shard=(number, 2)) for number in (1, 2)]
    assert codes == [3, 3]
    for number in range(32):
        (workspace.folder / "pics/0.png").exists() or workspace.draw_images(1)
        os.link(workspace.folder / "pics/0.png", workspace.folder / f"pics/tmp{number}")
        os.replace(workspace.folder / f"pics/tmp{number}", workspace.folder / f"pics/bad{number}.png")
    assert workspace.run_job(shard=(1, 2), retry_kind="") == 0
    answered = len(workspace.list_answered_ids())
    assert f"{answered} of {answered} failed rows are asked again" in workspace.messages
    assert 0 < answered < 32
    assert workspace.run_job(shard=(2, 2), retry_kind="") == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"bad{number}" for number in range(32))


def test_runs_on_shards_share_an_epoch_and_a_run_on_the_whole_waits_for_all_of_them(dataset):
    with open_lease(dataset, "one", (1, 2)) as one:
        with open_lease(dataset, "two", (2, 2)) as two:
            assert (one.epoch, two.epoch) == (1, 1)
            whole = WaitingRun(dataset, "whole")
            announcement = whole.read_announcement()
            assert "run one on " in announcement
            assert "works on shard 1/2 since " in announcement
        assert not whole.ended.wait(0.3)
        assert claims.read_newest_holder(dataset).run == "one"
    assert whole.read_epoch() == 2
    with open_lease(dataset, "three", (2, 2)) as three:
        assert three.epoch == 3


def test_a_second_run_on_a_shard_waits_for_the_first_and_another_division_for_all(dataset):
    with open_lease(dataset, "first", (1, 2)):
        runs = [WaitingRun(dataset, "again", (1, 2)), WaitingRun(dataset, "thirds", (3, 3))]
        assert all("run first on " in run.read_announcement() for run in runs)
        assert not any(run.ended.wait(0.1) for run in runs)
    assert [run.read_epoch() for run in runs]


def test_a_run_on_the_whole_takes_over_from_shards_which_then_commit_nothing(dataset, monkeypatch):
    monkeypatch.setenv("VLBATCH_LEASE_S", "0.3")
    with (
        open_lease(dataset, "one", (1, 2)) as one,
        open_lease(dataset, "two", (2, 2)) as two,
        open_lease(dataset, "whole", take_over=True) as whole,
    ):
        assert whole.predecessor_unreleased
        for shard in (one, two):
            with pytest.raises(StoppedError, match="another run has taken over"):
                raise_if_taken_over(dataset, shard.epoch)
            assert shard.ended.wait(TIMEOUT_S)
            with pytest.raises(StoppedError, match="run whole has taken over"):
                shard.raise_if_taken_over()
        raise_if_taken_over(dataset, whole.epoch)


def test_taking_over_a_shard_leaves_the_others_alone(dataset, monkeypatch):
    monkeypatch.setenv("VLBATCH_LEASE_S", "0.3")
    with (
        open_lease(dataset, "one", (1, 2)) as one,
        open_lease(dataset, "two", (2, 2)) as two,
        open_lease(dataset, "three", (2, 2), take_over=True) as three,
    ):
        assert three.epoch == one.epoch
        assert two.ended.wait(TIMEOUT_S)
        assert not one.ended.wait(0.2)
        raise_if_taken_over(dataset, one.epoch)


def test_runs_on_shards_that_died_elsewhere_are_not_joined(dataset):
    claim_on_another_machine(dataset, "dead", (1, 2), timeout_s=0.2)
    path = f"{dataset.store.root}/{dataset.get_shards_folder(1)}/1/00000001.beat"
    with open_lease(dataset, "joins", (2, 2)) as joins:
        assert joins.epoch == 1, "it gave a sign of life a moment ago"
    os.utime(path, (0, time.time() - 60))
    with open_lease(dataset, "begins", (1, 2)) as begins:
        assert begins.epoch == 2
        assert begins.predecessor_unreleased


@pytest.mark.process
def test_runs_on_shards_refuse_a_manifest_that_changed_since_the_others_began(workspace, monkeypatch):
    rows = workspace.draw_images(12)
    workspace.write_manifest(rows)
    assert workspace.run_job(shard=(1, 2)) == 0
    dataset = Dataset(
        OutputStore(str(workspace.folder / "out")), read_status(str(workspace.folder / "out")).fingerprint
    )
    claim_on_another_machine(dataset, "theirs", (2, 2), timeout_s=60).check_same_chunks("as theirs")
    before = workspace.list_parts()
    with pytest.raises(StoppedError, match="when they began, the manifest, "):
        workspace.run_job(shard=(1, 2))
    assert workspace.list_parts() == before


@pytest.mark.parametrize(
    ("document", "share"),
    [({"shard": (2, 4)}, 1.0), ({"shard": (3, 4)}, 0.0), ({"shard": (2, 3)}, 0.25), ({}, 0.25)],
    ids=["own shard", "other shard", "other division", "whole"],
)
def test_a_shard_pays_for_itself_and_a_share_of_the_runs_on_the_whole(document, share):
    assert find_share(document, Shard(2, 4)) == share
    assert find_share(document, None) == 1.0


def test_old_leases_of_shards_are_deleted(dataset):
    with open_lease(dataset, "old", (1, 2)):
        pass
    for ending in ("json", "beat"):
        os.utime(f"{dataset.store.root}/{dataset.lease_folder}/00000001.{ending}", (0, time.time() - 31 * 86400))
    with open_lease(dataset, "now", (1, 2)) as now:
        assert now.epoch == 2
    assert not dataset.store.list_names(dataset.get_shards_folder(1))
