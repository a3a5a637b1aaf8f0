"""A submitted run is followed over a connection that breaks."""

from __future__ import annotations

import pytest
import requests
from ray.job_submission import JobInfo, JobStatus

from pipeline.__main__ import main
from pipeline.cluster import submit


class Client:
    """A cluster that is out of reach for a while, after the first line of the log."""

    def __init__(self, silent: int):
        self.silent = silent

    def get_address(self):
        return "http://cluster:8265"

    def submit_job(self, **_):
        return "labels-1"

    async def tail_job_logs(self, _):
        yield "4 of 8 rows\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, _):
        self.silent -= 1
        if self.silent >= 0:
            raise requests.exceptions.ConnectionError("Connection refused")
        return JobStatus.FAILED

    def get_job_info(self, _):
        return JobInfo(status=JobStatus.FAILED, entrypoint="", driver_exit_code=3)


@pytest.fixture
def follow(workspace, monkeypatch):
    """A function: the exit code of a submission to a cluster that is silent so often."""
    monkeypatch.setattr(submit, "LOOK_S", 0.01)
    monkeypatch.setattr(submit, "LOST_S", 0.5)
    workspace.write_manifest(workspace.draw_images(1))

    def run(silent):
        monkeypatch.setattr(submit, "connect", lambda address: Client(silent))
        return main(["submit", str(workspace.write_job_file()), "--follow"])

    return run


def test_a_connection_that_comes_back_ends_with_the_exit_code_of_the_run(follow, capsys):
    assert follow(3) == 3
    assert "4 of 8 rows" in capsys.readouterr().out


def test_a_connection_that_stays_away_is_said_to_be_no_end_of_the_run(follow, capsys):
    assert follow(10**9) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "lost sight of it: Connection refused; it goes on. ray job logs --follow --address http://cluster:8265 labels-1"
    )
