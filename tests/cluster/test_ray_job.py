"""The driver of a Ray job knows its RayJob, and stops a job that cannot run, so that KubeRay does not repeat it."""

from __future__ import annotations

import json

import pytest

from pipeline.__main__ import main
from pipeline.cluster import submit
from pipeline.cluster.ray_job import describe_submission
from pipeline.errors import ExitCode, JobError

SUBMITTED = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "nightly-29-x7k2p"}})}


@pytest.mark.parametrize(
    ("environment", "described"),
    [
        ({}, {}),
        (SUBMITTED, {"submission": "nightly-29-x7k2p"}),
        ({**SUBMITTED, "RAY_CLUSTER_NAME": "vlbatch"}, {"submission": "nightly-29-x7k2p"}),
        (
            {**SUBMITTED, "RAY_CLUSTER_NAME": "nightly-29-qqqqq"},
            {"submission": "nightly-29-x7k2p", "ray_job": "nightly-29"},
        ),
    ],
    ids=["no job", "job submit", "lasting cluster", "RayJob"],
)
def test_the_submission_names_its_ray_job_only_on_the_cluster_of_that(environment, described):
    assert describe_submission(environment) == described


class Client:
    def __init__(self):
        self.stopped = []

    def stop_job(self, submission_id):
        self.stopped.append(submission_id)


@pytest.fixture
def client(monkeypatch):
    """The cluster of a driver whose process Ray does not end."""
    client = Client()
    monkeypatch.setattr(submit, "connect_to_cluster", lambda address: client)
    monkeypatch.setattr(submit, "STOP_TIMEOUT_S", 0.0)
    for name, value in SUBMITTED.items():
        monkeypatch.setenv(name, value)
    return client


def test_a_job_that_cannot_run_stops_its_ray_job_if_asked_to(client, tmp_path, capsys):
    missing = str(tmp_path / "missing.yaml")
    assert main(["run", missing]) == ExitCode.CANNOT_RUN
    assert client.stopped == []
    assert main(["run", missing, "--stop-when-refused"]) == ExitCode.CANNOT_RUN
    assert client.stopped == ["nightly-29-x7k2p"]
    assert "missing.yaml" in capsys.readouterr().err


@pytest.mark.process
def test_a_run_that_stops_early_is_left_to_be_repeated(client, workspace):
    workspace.write_manifest(workspace.write_broken_images(120))
    job = str(workspace.write_job_file(limits={"error_rate": 0}))
    assert main(["run", job, "--local", "--stop-when-refused"]) == ExitCode.INCOMPLETE
    assert client.stopped == []


def test_a_cluster_that_does_not_answer_is_reported(client, tmp_path, capsys, monkeypatch):
    def refuse(address):
        raise JobError("no cluster: connection refused")

    monkeypatch.setattr(submit, "connect_to_cluster", refuse)
    assert main(["run", str(tmp_path / "missing.yaml"), "--stop-when-refused"]) == ExitCode.CANNOT_RUN
    assert "cannot stop this Ray job, so KubeRay may repeat it in vain" in capsys.readouterr().err


def test_without_a_ray_job_nothing_is_stopped(client, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert main(["run", str(tmp_path / "missing.yaml"), "--stop-when-refused"]) == ExitCode.CANNOT_RUN
    assert client.stopped == []
