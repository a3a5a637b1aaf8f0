"""A row that crashes its process becomes an error that says what happened, and all other rows are answered.

`python -m tests.chaos.poison` tries every kind of crash, each among 500 rows.
"""

from __future__ import annotations

import pytest

from pipeline.errors import PipelineError, StoppedError
from tests.chaos.poison import hostile_ray
from tests.workspace import JobWorkspace

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def workspace():
    with hostile_ray() as folder:
        yield JobWorkspace(folder)


CRASHES = [  # a row's id says how it crashes its process; then what its dead letter says
    ("engine-segfault", "generate", "Fatal Python error: Segmentation fault"),
    pytest.param("prepare-memory", "decode", "most likely for want of memory", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("crash", "stage", "reason"), CRASHES)
def test_rows_that_crash_their_process_become_errors_and_all_others_are_answered(workspace, crash, stage, reason):
    rows = workspace.draw_images(48)
    rows[5]["id"] = crash
    workspace.write_manifest(rows)
    output = {"path": str(workspace.folder / crash), "chunk_rows": 16}
    assert workspace.run_job(runner="ray", output=output) == 3
    (dead_letter,) = workspace.read_dead_letters(crash)
    assert workspace.list_answered_ids(crash) == sorted({row["id"] for row in rows} - {crash})
    assert dead_letter["id"] == crash
    assert (dead_letter["stage"], dead_letter["kind"], dead_letter["attempts"]) == (stage, "worker_died", 3)
    assert reason in dead_letter["message"]


@pytest.mark.slow
def test_an_engine_that_crashes_at_every_start_stops_the_run_and_says_so(workspace):
    workspace.write_manifest(workspace.draw_images(4))
    with pytest.raises(StoppedError, match=r"(?s)died while they started.*most likely for want of memory"):
        workspace.run_job(runner="ray", engine={"default": "memory"}, output={"path": str(workspace.folder / "never")})


def test_a_replica_starts_once_however_many_chunks_there_are(workspace):
    workspace.write_manifest(workspace.draw_images(60))
    (workspace.folder / "starts").unlink(missing_ok=True)
    output = {"path": str(workspace.folder / "started once"), "chunk_rows": 1}
    assert workspace.run_job(runner="ray", output=output) == 0
    assert len(workspace.list_parts("started once")) == 60
    assert (workspace.folder / "starts").read_text() == "."


@pytest.mark.slow
def test_a_broken_gpu_is_set_aside_and_the_other_replicas_answer_every_row(workspace, capfd):
    workspace.write_manifest(workspace.draw_images(96))
    (workspace.folder / "starts").unlink(missing_ok=True)
    code = workspace.run_job(
        runner="ray",
        engine={"default": "one works", "delay_ms": 100},
        workers={"generate": {"gpus": 0, "min": 2, "max": 2}},
        output={"path": str(workspace.folder / "broken gpu")},
    )
    assert code == 0
    assert workspace.list_answered_ids("broken gpu") == sorted(f"r{number}" for number in range(96))
    message = capfd.readouterr().err
    assert "a worker is set aside, and the others go on: 3 processes that generate died while they started" in message
    assert "The last one said: this worker cannot start: RuntimeError: CUDA error" in message


def test_the_error_that_keeps_a_prepare_worker_from_starting_reaches_the_user(workspace):
    workspace.write_manifest(workspace.draw_images(4))
    with pytest.raises(PipelineError, match=r"^there is no tokenizer on this node$"):
        workspace.run_job(
            runner="ray", engine={"default": "no preparer"}, output={"path": str(workspace.folder / "nor this")}
        )
