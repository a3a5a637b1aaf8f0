"""What keeps a run from connecting to Ray is one sentence that says what to do."""

from __future__ import annotations

import logging
import os

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
        (RuntimeError(MISMATCH), "RAY_ADDRESS: the cluster at head:6379 has other versions of Ray or Python than this"),
        (
            ray.exceptions.AuthenticationError("InvalidAuthToken"),
            "RAY_ADDRESS: .* refuses this process: InvalidAuthToken; set RAY_AUTH",
        ),
        (ConnectionError("refused"), "RAY_ADDRESS: no Ray cluster at head:6379"),
        (Exception("The current node timed out during startup. This could"), "Ray did not start within its limit"),
    ],
    ids=["version", "token", "absent", "busy machine"],
)
def test_a_refusal_of_the_cluster_is_one_sentence(monkeypatch, error, message):
    def refuse(**options):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(JobError, match=f"^{message}") as raised:
        ray_session.start_ray("head:6379", show_log=True)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("show_log", [True, False])
def test_the_lines_of_ray_are_printed_where_they_are_asked_for(workspace, monkeypatch, capfd, show_log):
    """Those of its native code, too. `test_a_run_prints_only_its_own_lines` starts a real cluster."""

    def start(*, log_to_driver, logging_level, **options):
        os.write(2, b"a line of the raylet\n")
        assert (log_to_driver, logging_level) == (show_log, logging.INFO if show_log else logging.ERROR)
        raise ConnectionError

    workspace.write_manifest(workspace.draw_images(1))
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["--ray-log"] if show_log else []
    assert main(["run", str(workspace.write_job_file()), *words]) == ExitCode.CANNOT_RUN
    assert ("a line of the raylet" in capfd.readouterr().err) == show_log


@pytest.mark.parametrize(
    ("address", "show_log", "omitted"), [("local", False, True), ("local", True, False), ("head:6379", False, False)]
)
def test_only_a_cluster_of_ones_own_whose_log_is_not_shown_omits_services(monkeypatch, address, show_log, omitted):
    def list_services():
        return [getattr(ray._private.node.Node, name) for name in ray_session.UNUSED_SERVICES]

    before, during = list_services(), []
    monkeypatch.setattr(ray, "init", lambda **options: during.extend(list_services()))
    ray_session.start_ray(address, show_log=show_log)
    assert len(set(during) - set(before)) == 3 * omitted
    assert list_services() == before
