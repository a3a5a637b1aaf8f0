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


class ShardsClient:
    """Takes jobs, and says how each ended."""

    def __init__(self, exit_codes):
        self.exit_codes, self.requests = dict(enumerate(exit_codes, 1)), []

    def get_address(self):
        return "http://cluster:8265"

    def submit_job(self, **request):
        self.requests.append(request)
        return f"labels-{len(self.requests)}"

    async def tail_job_logs(self, submission_id):
        yield f"of {submission_id}\nend\n"

    def get_job_status(self, _):
        return JobStatus.FAILED

    def get_job_info(self, submission_id):
        code = self.exit_codes[int(submission_id.rpartition("-")[2])]
        return JobInfo(status=JobStatus.FAILED, entrypoint="", driver_exit_code=code)


@pytest.mark.parametrize(("exit_codes", "expected"), [((3, 3), 3), ((3, 4), 4), ((2, 4), 2)])
def test_a_job_in_shards_is_as_many_ray_jobs_that_are_followed_together(
    workspace, monkeypatch, capsys, exit_codes, expected
):
    client = ShardsClient(exit_codes)
    monkeypatch.setattr(submit, "connect_to_cluster", lambda address: client)
    workspace.write_manifest(workspace.draw_images(1))
    assert main(["submit", str(workspace.write_job_file()), "--shards", "2", "--follow"]) == expected
    assert "[1] of labels-1\n[1] end\n" in (logs := capsys.readouterr().out)
    assert "[2] of labels-2\n" in logs
    assert [request["entrypoint"].partition(" --shard=")[2] for request in client.requests] == ["1/2", "2/2"]
    assert {request["entrypoint_num_cpus"] for request in client.requests} == {1}
    assert client.requests[0]["runtime_env"]["env_vars"]["VLBATCH_DRIVERS"] == "2"
    assert len({request["submission_id"] for request in client.requests}) == 2
