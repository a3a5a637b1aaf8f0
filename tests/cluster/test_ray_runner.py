"""Runs on Ray give the same rows as local runs, and may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster import ray_runner
from pipeline.command_text import shorten_path
from pipeline.errors import JobError, StoppedError
from tests.small_ray import start_small_ray

pytestmark = pytest.mark.process

SHOWN = ("id", "hint", "text", "finish", "tokens", "attempts", "question", "stage", "kind", "message")


@pytest.fixture(scope="module")
def session():
    """One Ray session for the module, which the runs use."""
    with start_small_ray():
        yield


def shown(rows):
    return [{name: row[name] for name in SHOWN if name in row} for row in rows]


@pytest.mark.parametrize("slice_rows", [None, 2])
@pytest.mark.usefixtures("session")
def test_a_cluster_writes_the_same_rows_as_one_process(workspace, slice_rows):
    workspace.write_manifest(
        [
            *workspace.draw_images(14),
            *workspace.write_broken_images(2),
            {"id": "gone", "image": "pics/gone.png", "hint": "h"},
        ]
    )
    assert workspace.run_job() == 3
    output = {"path": str(workspace.folder / "there"), "slice_rows": slice_rows}
    assert workspace.run_job(runner="ray", output=output) == 3
    assert len(workspace.read_answers("there")) == 14
    assert shown(workspace.read_answers("there")) == shown(workspace.read_answers())
    assert shown(workspace.read_dead_letters("there")) == shown(workspace.read_dead_letters())
    assert workspace.list_parts("there").keys() == workspace.list_parts().keys()


@pytest.mark.slow
@pytest.mark.parametrize("slice_rows", [4, 1])
@pytest.mark.usefixtures("session")
def test_a_killed_run_that_is_repeated_answers_every_row_once_and_repeats_no_chunk(
    workspace, ray_environment, slice_rows
):
    workspace.write_manifest(workspace.draw_images(48))
    slow = {"kind": "scripted", "default": "seen {id}", "slots": 1, "delay_ms": 200}
    job = workspace.write_job_file(engine=slow, output={"slice_rows": slice_rows})
    command = [sys.executable, "-m", "pipeline", "run", str(job)]
    first = subprocess.Popen(command, env=ray_environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: workspace.list_parts() or first.poll() is not None)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    committed = wait_until_no_part_is_added(workspace)
    assert 1 <= len(committed) < 12
    assert workspace.run_job(runner="ray") == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{n}" for n in range(48))
    assert committed.items() <= workspace.list_parts().items()
    assert f"{4 * len(committed)} done before" in workspace.messages[0]


@pytest.fixture
def run_scattered(workspace, monkeypatch):
    """A function that runs over a manifest with one row per file, and splits the files in tasks."""
    monkeypatch.setattr(ray_runner, "MIN_FILES_FOR_CLUSTER", 1)

    def run(rows, **options):
        (workspace.folder / "m").mkdir()
        columns = pa.schema([(name, pa.string()) for name in ("id", "image", "hint")])
        for number, row in enumerate(rows):
            table = pa.Table.from_pylist([{**row, "image": str(workspace.folder / row["image"])}], columns)
            pq.write_table(table, workspace.folder / f"m/{number}.parquet")
        return workspace.run_job(
            runner="ray", input={"manifest": str(workspace.folder / "m"), "roots": [str(workspace.folder)]}, **options
        )

    return run


@pytest.mark.usefixtures("session")
def test_an_error_in_one_of_many_files_is_shown_without_a_traceback(workspace, run_scattered):
    first, second = workspace.draw_images(2)
    with pytest.raises(JobError, match=r"^file://\S+/1\.parquet: column id \(input\.id\) is empty in a row"):
        run_scattered([first, {**second, "id": None}])


@pytest.mark.usefixtures("session")
def test_a_trial_splits_only_the_files_that_it_needs(workspace, run_scattered, monkeypatch):
    monkeypatch.setattr(ray_runner, "split_on_cluster", lambda *_: pytest.fail("all files are split"))
    first, second = workspace.draw_images(2)
    assert run_scattered([first, {**second, "id": None}], row_limit=1) == 0
    assert workspace.list_answered_ids() == ["r0"]


@pytest.mark.usefixtures("session")
def test_a_run_leaves_the_ray_session_and_the_process_of_its_caller_unchanged(workspace):
    def list_threads():
        return [thread.name for thread in threading.enumerate() if thread.name != "Prefetcher"]  # of Ray

    workspace.write_manifest(workspace.draw_images(4))
    before = list_threads()
    assert workspace.run_job(runner="ray") == 0
    assert list_threads() == before


@pytest.mark.usefixtures("session")
def test_a_run_that_ends_early_says_why(workspace):
    workspace.write_manifest([*workspace.write_broken_images(100), *workspace.draw_images(200)])
    with pytest.raises(StoppedError) as stopped:
        workspace.run_job(runner="ray", limits={"error_rate": 0.5})
    assert "more than limits.error_rate" in str(stopped.value)


def test_a_run_prints_only_its_own_lines(workspace, ray_environment):
    workspace.write_manifest(workspace.draw_images(6))
    command = [sys.executable, "-m", "pipeline", "run", str(workspace.write_job_file())]
    done = subprocess.run(command, env=ray_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, *between, last, where, next_command = done.stderr.splitlines()
    assert all(" of 6 rows" in line for line in between)  # progress lines, on a slow machine
    assert first == "t: 6 rows; 6 to do in 2 chunks"
    assert last.startswith("6 answered, 0 failed in ")
    assert where.startswith(f"answers: {shorten_path(str(workspace.folder))}/out/data/")
    assert next_command.startswith("next: ")


def wait_until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within five minutes")


def wait_until_no_part_is_added(workspace):
    """Wait for the workers of the killed run. Returns the parts."""
    previous = None
    while previous != (parts := workspace.list_parts()):
        previous = parts
        time.sleep(2)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("output", [{"chunk_rows": 4}, {"chunk_rows": 20, "slice_rows": 2}])
@pytest.mark.usefixtures("session")
def test_a_run_whose_budget_is_spent_commits_what_it_has_begun(workspace, output):
    workspace.write_manifest(workspace.draw_images(120))
    options = {"engine": {"delay_ms": 100, "slots": 1}, "output": output}
    with pytest.raises(StoppedError, match=r"of limits.budget.tokens are spent; answers are kept"):
        workspace.run_job(runner="ray", limits={"budget": {"tokens": 100}}, **options)
    answered = workspace.list_answered_ids()
    assert 4 <= len(answered) < 120
    if "slice_rows" in output:
        assert len(answered) > 20
        assert len(answered) % 20, "of one chunk only some slices were answered, and they are kept"
    assert workspace.run_job(runner="ray", limits={"budget": {"tokens": 1_000_000}}, **options) == 0
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(120))
