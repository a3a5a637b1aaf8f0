"""`ray job submit` on a cluster that was started in the root of the repository."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipeline.builtin import scene_files
from pipeline.cluster.metrics import METRICS, to_prometheus_name
from tests.seaweed import free_ports
from tests.workspace import wait_for_url

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
JOB = "jobs/demo/caption.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    scene_files.write_scene_files(folder / "caption", "caption", 24, first_scene=100_000)
    return folder


@pytest.fixture(scope="module")
def submit(ray_environment, place):
    """A function that runs `ray job submit` on a cluster of the module. Returns the finished process."""
    port, board, agent, agent_grpc, client, metrics = free_ports(6)
    env = {**ray_environment, "DEMO": str(place), "RAY_metrics_report_interval_ms": "1000"}
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    subprocess.run(
        [
            *(ray, "start", "--head", f"--port={port}", f"--dashboard-port={board}", "--node-ip-address=127.0.0.1"),
            *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", "--num-cpus=3"),
            *(f"--temp-dir={env['RAY_TMPDIR']}", "--object-store-memory=200000000", "--disable-usage-stats"),
        ],
        cwd=ROOT,
        env=env,
        check=True,
        capture_output=True,
    )
    url = f"http://127.0.0.1:{board}"
    wait_for_url(f"{url}/api/jobs/", token=env["RAY_AUTH_TOKEN"])

    def run(*words: str, scraped: set[str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [ray, "job", "submit", "--address", url, *words]
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while scraped is not None and process.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as response,
            ):
                scraped |= set(re.findall(r"^(ray_vlbatch_\w+)\{", response.read().decode(), re.MULTILINE))
            time.sleep(0.5)
        output, _ = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output, "")

    return run


WITH_WORKING_DIR = pytest.param(("--working-dir", ".", JOB), marks=pytest.mark.slow)


@pytest.mark.parametrize("words", [(JOB,), WITH_WORKING_DIR], ids=["job alone", "working dir"])
def test_ray_job_submit_runs_the_demo_job_unchanged(submit, place, words):
    expected = {to_prometheus_name(name) for name in METRICS if name not in ("gpu_seconds", "errors")}
    scraped: set[str] = set()
    for _ in range(5):  # a worker that ends within the second between two reports takes its metrics along
        shutil.rmtree(place / "answers", ignore_errors=True)
        done = submit(*words, scraped=scraped)
        assert done.returncode == 0, done.stdout + done.stderr
        if scraped >= expected:
            break
    assert "succeeded" in done.stdout + done.stderr
    answers = ds.dataset(place / "answers/caption/data").to_table().to_pylist()
    assert sorted(row["id"] for row in answers) == [f"caption-{n}" for n in range(100_000, 100_024)]
    assert all(row["truth"] for row in answers)
    assert scraped == expected


def test_a_broken_job_fails_and_names_the_line(submit, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((ROOT / JOB).read_text().replace("  max_new_tokens: 96", "  max_tokens: 96"))
    broken.chmod(0o755)
    done = submit(str(broken))
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert "failed" in output
    line = broken.read_text().splitlines().index("  max_tokens: 96") + 1
    assert f"broken.yaml:{line}" in output
    assert "max_tokens" in output


FAILED_ROWS = [([], 1, "exit code 3"), (["--allow-errors"], 0, "succeeded")]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "exit_code", "expected"), FAILED_ROWS, ids=["refused", "allowed"])
def test_failed_rows_fail_the_ray_job_unless_they_are_allowed(submit, place, tmp_path, options, exit_code, expected):
    run = ["--", "python", "-m", "pipeline", "run", JOB, f"--set=output.path={tmp_path}/out", "--limit=1"]
    run += ["--set=input.media=truth", "--set=limits.error_rate=1"]  # a column without pictures
    done = submit("--working-dir", ".", *run, *options)
    assert (done.returncode, expected in done.stdout) == (exit_code, True), done.stdout


@pytest.mark.slow
def test_a_job_that_cannot_run_ends_as_stopped_which_kuberay_does_not_repeat(submit):
    done = submit("--working-dir", ".", "--", "python", "-m", "pipeline", "run", "missing.yaml", "--stop-when-refused")
    assert "error: missing.yaml" in done.stdout, done.stdout
    assert (done.returncode, "was stopped" in done.stdout) == (0, True), done.stdout
