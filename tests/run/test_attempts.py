"""Each attempt of a RayJob is a run that knows its number."""

from __future__ import annotations

from pipeline.output.dataset import list_runs, read_run_document
from pipeline.output.store import OutputStore
from pipeline.run.local import LocalRunner


def test_the_attempts_of_a_ray_job_are_numbered_in_the_plans_of_their_runs(workspace, monkeypatch):
    workspace.write_manifest(workspace.draw_images(1))
    for ray_job in ("night-1", "night-2", "night-2", None, "night-2"):
        submission = {"submission": f"{ray_job}-x7k2p", "ray_job": ray_job} if ray_job else {}
        monkeypatch.setattr(LocalRunner, "describe_submission", lambda runner, submission=submission: submission)
        assert workspace.run_job() == 0
    assert "attempt 3 of RayJob night-2" in workspace.messages
    store = OutputStore(str(workspace.folder / "out"))
    plans = [read_run_document(store, run_id, "plan") for run_id in reversed(list_runs(store, "plan"))]
    assert [plan.get("attempt") for plan in plans] == [1, 1, 2, None, 3]
    assert plans[0]["submission"] == "night-1-x7k2p"
