"""`ray job submit` on a cluster that was started in the repository's root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipeline.tiny import demo

ROOT = Path(__file__).parents[2]
JOB = "jobs/demo/caption.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.make(folder)
    return folder


@pytest.fixture(scope="module")
def submit(surroundings, ports, place):
    """A function: the end of `ray job submit ...` on a cluster of the test's own."""
    port, board, agent, agent_grpc, client, metrics = ports(6)
    env = {**surroundings, "DEMO": str(place)}
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
    wait_for(f"{url}/api/jobs/")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [ray, "job", "submit", "--address", url, *words]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    return run


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} does not answer")


@pytest.mark.parametrize("words", [("--working-dir", ".", JOB), (JOB,)], ids=["working dir", "literal"])
def test_the_demo_job_is_submitted_as_it_is(submit, place, words):
    shutil.rmtree(place / "captions", ignore_errors=True)
    done = submit(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    answers = ds.dataset(place / "captions/data").to_table().to_pylist()
    assert sorted(row["id"] for row in answers) == [f"{n:03}" for n in range(24)]
    assert all(row["truth"] for row in answers)


def test_a_broken_job_fails_with_the_line_that_is_wrong(submit, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((ROOT / JOB).read_text().replace("  max_new_tokens: 64", "  max_tokens: 64"))
    broken.chmod(0o755)
    done = submit(str(broken))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "failed" in said
    line = broken.read_text().splitlines().index("  max_tokens: 64") + 1
    assert f"broken.yaml:{line}" in said
    assert "max_tokens" in said
