"""A row that crashes its process becomes an error that says what happened, and all other rows are answered.

`python -m tests.chaos.poison` tries every kind of crash, each among 500 rows.
"""

from __future__ import annotations

import pytest

from pipeline.errors import PipelineError, StoppedError
from tests.chaos.poison import hostile_ray
from tests.workspace import JobWorkspace


@pytest.fixture(scope="module")
def workspace():
    with hostile_ray() as folder:
        yield JobWorkspace(folder)


def test_rows_that_crash_their_process_become_errors_and_all_others_are_answered(workspace):
    rows = workspace.draw_images(48)
    rows[5]["id"], rows[40]["id"] = "engine-segfault", "prepare-memory"
    workspace.write_manifest(rows)
    assert workspace.run_job(runner="ray", output={"chunk_rows": 16}) == 3
    engine, prepare = workspace.read_dead_letters()
    assert workspace.list_answered_ids() == sorted({row["id"] for row in rows} - {engine["id"], prepare["id"]})
    assert [engine["id"], prepare["id"]] == ["engine-segfault", "prepare-memory"]
    assert (engine["stage"], engine["kind"], engine["attempts"]) == ("generate", "worker_died", 3)
    assert (prepare["stage"], prepare["kind"], prepare["attempts"]) == ("decode", "worker_died", 3)
    assert "Fatal Python error: Segmentation fault" in engine["message"]
    assert "most likely for want of memory" in prepare["message"]


def test_an_engine_that_crashes_at_every_start_stops_the_run_and_says_so(workspace):
    workspace.write_manifest(workspace.draw_images(4))
    with pytest.raises(StoppedError, match=r"(?s)died while they started.*most likely for want of memory"):
        workspace.run_job(runner="ray", engine={"default": "memory"}, output={"path": str(workspace.folder / "never")})


def test_the_error_that_keeps_a_prepare_worker_from_starting_reaches_the_user(workspace):
    workspace.write_manifest(workspace.draw_images(4))
    with pytest.raises(PipelineError, match=r"^there is no tokenizer on this node$"):
        workspace.run_job(
            runner="ray", engine={"default": "no preparer"}, output={"path": str(workspace.folder / "nor this")}
        )
