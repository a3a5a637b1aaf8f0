"""Following a submitted run over a connection that breaks."""

from __future__ import annotations

import pytest
import requests
from ray.job_submission import JobInfo, JobStatus

from pipeline.__main__ import main
from pipeline.cluster import submit


class UnreachableClient:
    """The cluster cannot be reached for a while after the first line of the log."""

    def __init__(self, failures: int):
        self.failures = failures

    def get_address(self):
        return "http://cluster:8265"

    def submit_job(self, **_):
        return "labels-1"

    async def tail_job_logs(self, _):
        yield "4 of 8 rows\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, _):
        self.failures -= 1
        if self.failures >= 0:
            raise requests.exceptions.ConnectionError("Connection refused")
        return JobStatus.FAILED

    def get_job_info(self, _):
        return JobInfo(status=JobStatus.FAILED, entrypoint="", driver_exit_code=3)


@pytest.fixture
def follow(workspace, monkeypatch):
    """A function that submits a job to a cluster that fails so often. Returns the exit code."""
    monkeypatch.setattr(submit, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(submit, "CONNECTION_TIMEOUT_S", 0.5)
    workspace.write_manifest(workspace.draw_images(1))

    def run(failures):
        monkeypatch.setattr(submit, "connect_to_cluster", lambda address: UnreachableClient(failures))
        return main(["submit", str(workspace.write_job_file()), "--follow"])

    return run


def test_after_a_broken_connection_the_exit_code_is_that_of_the_run(follow, capsys):
    assert follow(3) == 3
    assert "4 of 8 rows" in capsys.readouterr().out


def test_a_lost_connection_is_not_reported_as_the_end_of_the_run(follow, capsys):
    assert follow(10**9) == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == (
        "lost the connection: Connection refused; the job goes on. "
        "ray job logs --follow --address http://cluster:8265 labels-1"
    )
