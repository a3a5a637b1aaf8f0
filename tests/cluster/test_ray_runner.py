"""The same runs on Ray: the same rows, and no harm in being killed."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext

from pipeline.cluster import ray_runner
from pipeline.errors import JobError, StoppedError

SHOWN = ("id", "hint", "text", "finish", "tokens", "attempts", "question", "stage", "kind", "message")


@pytest.fixture(scope="module")
def session():
    """One Ray for the module, which runs join and leave as they find it."""
    folder = tempfile.mkdtemp(prefix="vl")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 10**6,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def shown(rows):
    return [{name: row[name] for name in SHOWN if name in row} for row in rows]


@pytest.mark.usefixtures("session")
def test_a_cluster_writes_what_one_process_writes(workspace):
    workspace.write_manifest(
        [
            *workspace.draw_images(14),
            *workspace.write_broken_images(2),
            {"id": "gone", "image": "pics/gone.png", "hint": "h"},
        ]
    )
    assert workspace.run_job() == 3
    assert workspace.run_job(in_process=False, output={"path": str(workspace.folder / "there")}) == 3
    assert len(workspace.read_answers("there")) == 14
    assert shown(workspace.read_answers("there")) == shown(workspace.read_answers())
    assert shown(workspace.read_dead_letters("there")) == shown(workspace.read_dead_letters())
    assert workspace.list_parts("there").keys() == workspace.list_parts().keys()


@pytest.mark.usefixtures("session")
def test_what_one_process_began_a_cluster_finishes_in_waves(workspace, monkeypatch):
    waves, receipts = [], ray_runner.build_dataset

    def noting(work, chunks, ledger):
        waves.append(len(chunks))
        return receipts(work, chunks, ledger)

    monkeypatch.setattr(ray_runner, "WAVE", 1)
    monkeypatch.setattr(ray_runner, "receipts", noting)
    workspace.write_manifest(workspace.draw_images(18))
    assert workspace.run_job(row_limit=5) == 0
    begun = workspace.list_parts()
    assert workspace.run_job(in_process=False) == 0
    assert waves == [1, 1, 1, 1]
    assert workspace.list_answered_ids() == sorted(f"r{n}" for n in range(18))
    assert begun.items() <= workspace.list_parts().items()


@pytest.mark.usefixtures("session")
def test_a_killed_run_submitted_again_answers_every_row_once_and_redoes_no_chunk(workspace, ray_environment):
    workspace.write_manifest(workspace.draw_images(48))
    slow = {"kind": "scripted", "default": "seen {id}", "slots": 1, "delay_ms": 200}
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file(engine=slow))]
    first = subprocess.Popen(command, env=ray_environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until(lambda: workspace.list_parts() or first.poll() is not None)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    settled = until_still(workspace)
    assert 1 <= len(settled) < 12
    assert workspace.run_job(in_process=False) == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{n}" for n in range(48))
    assert settled.items() <= workspace.list_parts().items()
    assert f"{4 * len(settled)} done before" in workspace.messages[0]


@pytest.fixture
def scattered(workspace, monkeypatch):
    """A function: a manifest of one row a file, and a run over it that cuts files in tasks."""
    monkeypatch.setattr(ray_runner, "MANY_FILES", 1)

    def run(rows, **more):
        (workspace.folder / "m").mkdir()
        columns = pa.schema([(name, pa.string()) for name in ("id", "image", "hint")])
        for number, row in enumerate(rows):
            one = pa.Table.from_pylist([{**row, "image": str(workspace.folder / row["image"])}], columns)
            pq.write_table(one, workspace.folder / f"m/{number}.parquet")
        return workspace.run_job(
            in_process=False, input={"manifest": str(workspace.folder / "m"), "roots": [str(workspace.folder)]}, **more
        )

    return run


@pytest.mark.usefixtures("session")
def test_what_is_wrong_with_one_file_of_many_is_told_without_a_traceback(workspace, scattered):
    first, second = workspace.draw_images(2)
    with pytest.raises(JobError, match=r"^file://\S+/1\.parquet: column id \(input\.id\) is empty in a row"):
        scattered([first, {**second, "id": None}])


@pytest.mark.usefixtures("session")
def test_a_trial_of_many_files_cuts_no_more_of_them_than_it_needs(workspace, scattered, monkeypatch):
    monkeypatch.setattr(ray_runner, "cut_there", lambda *_: pytest.fail("all files are cut"))
    first, second = workspace.draw_images(2)
    assert scattered([first, {**second, "id": None}], limit=1) == 0
    assert workspace.list_answered_ids() == ["r0"]


@pytest.mark.usefixtures("session")
def test_a_run_leaves_its_callers_ray_and_process_as_they_were(workspace):
    def state():
        context = DataContext.get_current()
        threads = [thread.name for thread in threading.enumerate() if thread.name != "Prefetcher"]  # of Ray
        return context.target_max_block_size, context.enable_progress_bars, context.autoscaling_config, threads

    workspace.write_manifest(workspace.draw_images(4))
    before = copy.deepcopy(state())
    assert workspace.run_job(in_process=False) == 0
    assert state() == before


@pytest.mark.usefixtures("session")
def test_a_run_that_ends_early_leaves_nobody_who_would_ask_ray_after_its_end(workspace):
    workspace.write_manifest([*workspace.write_broken_images(100), *workspace.draw_images(200)])
    with pytest.raises(StoppedError) as stopped:
        workspace.run_job(in_process=False, limits={"error_rate": 0.5})
    assert "more than limits.error_rate" in str(stopped.value)
    assert not [thread for thread in threading.enumerate() if thread.name == ray_runner.READER_THREAD_NAME]


def test_a_run_says_nothing_but_its_own_lines_and_what_ray_logs_where_that_is_asked_for(workspace, ray_environment):
    workspace.write_manifest(workspace.draw_images(6))
    said = []
    for words in ([], ["--ray-log", "--on-change=add", "--set=prompt.user=What colour is it?"]):
        command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file()), *words]
        done = subprocess.run(command, env=ray_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "" or words
        said.append(done.stderr)
    first, *between, last, where = said[0].splitlines()
    assert all("rows/s" in line for line in between)  # a slow machine is told how it goes
    assert first == "t: 6 rows; 6 to do in 2 chunks"
    assert last.startswith("6 answered, 0 failed in ")
    assert where.startswith(f"answers: {workspace.folder}/out/data/")
    assert "Started a local Ray instance" in said[1]


def until(there) -> None:
    for _ in range(6000):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("nothing came in five minutes")


def until_still(workspace):
    """The parts, once what the killed run left behind has ended too."""
    before = None
    while before != (now := workspace.list_parts()):
        before = now
        time.sleep(2)
    return now
