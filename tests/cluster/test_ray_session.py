"""What keeps a run from connecting to Ray is one sentence that says what to do."""

from __future__ import annotations

import pytest
import ray

from pipeline.__main__ import main
from pipeline.cluster import ray_session
from pipeline.errors import ExitCode, JobError

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.11.7
This process on Node 1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_this_version_of_ray_has_what_is_needed():
    ray_session.check_ray_version()


def test_a_missing_private_function_of_ray_is_named(monkeypatch):
    monkeypatch.delattr(ray._private.utils, "set_sigterm_handler")
    with pytest.raises(JobError, match=rf"Ray {ray.__version__} lacks ray._private.utils.set_sigterm_handler, which"):
        ray_session.check_ray_version()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_for_clients_is_refused_with_advice(workspace, monkeypatch, capsys, address):
    workspace.write_manifest(workspace.draw_images(1))
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(["run", str(workspace.write_job_file())]) == ExitCode.CANNOT_RUN
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: RAY_ADDRESS: a run cannot be started through {address}; from another machine, use")
    assert "submit JOB --address http://HEAD:8265" in error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(MISMATCH), "the cluster at head:6379 has other versions of Ray or Python than this process"),
        (
            ray.exceptions.AuthenticationError("InvalidAuthToken"),
            "refuses this process: InvalidAuthToken; set RAY_AUTH",
        ),
        (ConnectionError("refused"), "no Ray cluster at head:6379"),
    ],
    ids=["version", "token", "absent"],
)
def test_a_refusal_of_the_cluster_is_one_sentence(monkeypatch, error, message):
    def refuse(**options):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(JobError, match=f"^RAY_ADDRESS: .*{message}") as raised:
        ray_session.start_ray("head:6379", show_log=True)
    assert len(str(raised.value).splitlines()) == 1
