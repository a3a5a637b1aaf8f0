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


CRASHES = [  # a row's id says how it crashes its process; then what its dead letter says, and the slices of chunks
    ("engine-segfault", "generate", "Fatal Python error: Segmentation fault", 4),
    pytest.param("engine-segfault", "generate", "Fatal Python error: Segmentation", 16, marks=pytest.mark.slow),
    pytest.param("prepare-memory", "decode", "most likely for want of memory", 8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("crash", "stage", "reason", "slice_rows"), CRASHES)
def test_rows_that_crash_their_process_become_errors_and_all_others_are_answered(
    workspace, crash, stage, reason, slice_rows
):
    rows = workspace.draw_images(48)
    rows[5]["id"] = crash
    workspace.write_manifest(rows)
    out = f"{crash} {slice_rows}"
    output = {"path": str(workspace.folder / out), "chunk_rows": 16, "slice_rows": slice_rows}
    assert workspace.run_job(runner="ray", output=output) == 3
    (dead_letter,) = workspace.read_dead_letters(out)
    assert len(workspace.list_parts(out)) == 3
    assert workspace.list_answered_ids(out) == sorted({row["id"] for row in rows} - {crash})
    assert dead_letter["id"] == crash
    assert (dead_letter["stage"], dead_letter["kind"], dead_letter["attempts"]) == (stage, "worker_died", 3)
    assert reason in dead_letter["message"]


@pytest.mark.slow
def test_an_engine_that_crashes_at_every_start_stops_the_run_and_says_so(workspace):
    workspace.write_manifest(workspace.draw_images(4))
    with pytest.raises(StoppedError, match=r"(?s)died while they started.*most likely for want of memory"):
        workspace.run_job(runner="ray", engine={"default": "memory"}, output={"path": str(workspace.folder / "never")})


def run_small_chunks(workspace, rows, output: str) -> tuple[int, str, list[int]]:
    """Run a chunk for each row. Returns the exit code, a dot for each start, and the number of chunks of each task."""
    workspace.write_manifest(rows)
    for name in ("starts", "tasks"):
        (workspace.folder / name).unlink(missing_ok=True)
    code = workspace.run_job(runner="ray", output={"path": str(workspace.folder / output), "chunk_rows": 1})
    starts, tasks = ((workspace.folder / name).read_text() for name in ("starts", "tasks"))
    return code, starts, [int(line) for line in tasks.split()]


def test_a_replica_starts_once_and_answers_several_small_chunks_in_a_task(workspace):
    code, starts, tasks = run_small_chunks(workspace, workspace.draw_images(60), "small chunks")
    assert (code, starts) == (0, ".")
    assert (len(workspace.list_parts("small chunks")), sum(tasks)) == (60, 60)
    assert max(tasks) > 1


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["engine-segfault", "prepare-memory"])
def test_a_row_that_crashes_a_task_of_many_chunks_is_the_only_one_that_fails(workspace, crash):
    rows = workspace.draw_images(300)
    rows[100]["id"] = crash
    code, _, tasks = run_small_chunks(workspace, rows, f"chunks with {crash}")
    assert (code, max(tasks) > 1) == (3, True)
    assert [letter["id"] for letter in workspace.read_dead_letters(f"chunks with {crash}")] == [crash]
    answered = workspace.list_answered_ids(f"chunks with {crash}")
    assert answered == sorted({row["id"] for row in rows} - {crash})


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
