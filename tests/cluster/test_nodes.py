"""A nightly job on a cluster whose nodes share only object storage, like pods.

Each node runs in a mount namespace of its own, in which the folders of the test and of the other nodes are empty. Only
the nodes have credentials, not the submitting process. The node with the GPU starts when a job waits for it.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from ray.job_submission import JobSubmissionClient

from pipeline.cluster.metrics import METRICS, to_prometheus_name
from tests.seaweed import KEY, SECRET, draw_noise, free_ports, read_rows
from tests.workspace import wait_for_url

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NIGHTLY = ROOT / "infra/kuberay/base/nightly.yaml"
ANSWER = '{"caption": "a thing", "tags": [], "language": "en"}'
RAY = os.path.join(os.path.dirname(sys.executable), "ray")


class Nodes:
    """Raylets with separate folders, and a command that submits to them."""

    def __init__(self, ray_environment, hidden: Path, inside: dict[str, str]):
        self.folder = ray_environment["RAY_TMPDIR"]
        self.hidden, self.env = hidden, {**ray_environment, **inside}
        self.outside = {name: value for name, value in ray_environment.items() if not name.startswith("AWS_")}
        gcs, board, client = free_ports(3)
        self.gcs, self.url, self.metrics = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{board}", []
        self.start(
            "--head", f"--port={gcs}", f"--dashboard-port={board}", f"--ray-client-server-port={client}", "--num-cpus=2"
        )
        wait_for_url(f"{self.url}/api/jobs/", token=self.env["RAY_AUTH_TOKEN"])

    def start(self, *words: str) -> None:
        agent, grpc, metrics = free_ports(3)
        self.metrics.append(f"http://127.0.0.1:{metrics}/metrics")
        common = [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
        common += [f"--metrics-export-port={metrics}", "--object-store-memory=150000000", "--node-ip-address=127.0.0.1"]
        common += ["--temp-dir", self.folder] if "--head" in words else []
        empty = " && ".join(f"mount -t tmpfs tmpfs '{path}'" for path in (self.folder, self.hidden))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{empty} && exec "$@"', "sh"]
        with open(self.hidden / f"{len(self.metrics)}.log", "wb") as log:
            subprocess.Popen(
                [*command, RAY, "start", "--block", *words, *common], cwd="/", env=self.env, stdout=log, stderr=log
            )

    def submit(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", "submit", str(NIGHTLY), "--address", self.url, "--follow", *words]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**self.outside, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def open_client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"})

    def scrape(self) -> set[str]:
        """The names of our metrics that Prometheus would read now."""
        names: set[str] = set()
        for url in self.metrics:
            try:
                text = urllib.request.urlopen(url, timeout=5).read().decode()
            except OSError:
                continue
            names |= set(re.findall(r"^(ray_vlbatch_\w+)\{", text, re.MULTILINE))
        return names


@pytest.fixture(scope="module")
def nodes(s3_environment, ray_environment, tmp_path_factory):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs mount namespaces (root, or CAP_SYS_ADMIN) for nodes that share no disk")
    inside = {name: value for name, value in s3_environment.items() if name.startswith("AWS_")}
    inside |= {
        "VLBATCH_AUTOSCALING": "1",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_raylet_start_wait_time_s": "120",
    }
    return Nodes(ray_environment, tmp_path_factory.mktemp("hidden"), inside)


@pytest.fixture(scope="module")
def store(s3_environment):
    out = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=s3_environment["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True
    )
    out.mkdir("night")
    return out


def partition(store, day: str, count: int, broken: int = 0) -> set[str]:
    """Write the manifest of a day and its pictures. Returns the ids."""
    rows = [{"id": f"{day}-{n}", "image": f"s3://night/pics/{day}-{n}.png"} for n in range(count)]
    content = [b"no picture" if n < broken else draw_noise(n % 5) for n in range(count)]
    store.pipe({row["image"][5:]: data for row, data in zip(rows, content, strict=True)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.pipe_file(f"night/scans/day={day}/part.parquet", sink.getvalue())
    return {row["id"] for row in rows}


def engine(delay_ms: int) -> list[str]:
    scripted = f"engine={{kind: scripted, slots: 1, delay_ms: {delay_ms}, default: '{ANSWER}'}}"
    return ["--set", scripted, "--set", "output.chunk_rows=4", "--set", "limits.error_rate=1"]


VARIABLES = {
    "WEIGHTS": "builtin:tiny",
    "MANIFEST": "s3://night/scans/day=*/*.parquet",
    "OUTPUT": "s3://night/labels/${date:%Y}",
}


def follow(process: subprocess.Popen[str], expected: str, action) -> str:
    """Returns the output of a command, and calls `action` once the expected text appears in it."""
    output: list[str] = []
    assert process.stdout
    for line in process.stdout:
        output.append(line)
        if action and expected in line:
            action()
            action = None
    process.wait()
    assert action is None, "".join(output)
    return "".join(output)


def test_a_run_on_nodes_that_share_only_object_storage_waits_for_its_gpu(nodes, store):
    ids = partition(store, "2026-11-20", 12, broken=1)
    scraped: set[str] = set()
    process = nodes.submit("--date", "2026-11-20", "--allow-errors", *engine(300), **VARIABLES)

    def watch() -> None:
        while process.poll() is None:
            scraped.update(nodes.scrape())
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    gpu_node = ("--address", nodes.gcs, "--num-cpus=1", "--num-gpus=1")
    output = follow(process, "the first replica waits for 1 GPU", lambda: nodes.start(*gpu_node))
    watcher.join()
    assert process.returncode == 0, output
    answered = read_rows(store, "night/labels/2026/data")
    assert {row["id"] for row in answered} == ids - {"2026-11-20-0"}
    assert {row["answer"]["caption"] for row in answered} == {"a thing"}
    assert [row["id"] for row in read_rows(store, "night/labels/2026/errors")] == ["2026-11-20-0"]
    assert scraped == {
        to_prometheus_name(name) for name in METRICS if not name.startswith("kv_")
    }  # the scripted engine has no cache


def test_the_next_run_does_only_what_is_new_and_resumes_after_a_stop(nodes, store):
    before = {path: store.info(path)["ETag"] for path in store.find("night/labels/2026/data")}
    ids = partition(store, "2026-11-21", 24)
    client = nodes.open_client()

    def stop() -> None:
        while len(store.find("night/labels/2026/data", refresh=True)) == len(before):
            time.sleep(0.1)
        client.stop_job(find_running_job())

    def find_running_job() -> str:
        return next(job.submission_id for job in client.list_jobs() if job.status == "RUNNING")

    stopped = nodes.submit("--date", "2026-11-21", *engine(500), **VARIABLES)
    output = follow(stopped, "12 done before; 24 to do", stop)
    assert stopped.returncode == 143, output
    assert "terminated; committed answers are kept" in output
    store.invalidate_cache()
    parts_at_stop = {path: store.info(path)["ETag"] for path in store.find("night/labels/2026/data")}
    assert before.items() < parts_at_stop.items()

    second = nodes.submit("--date", "2026-11-21", *engine(0), **VARIABLES)
    output = follow(second, "", None)
    assert second.returncode == 3, output  # the first night's broken row is still a failure
    store.invalidate_cache()
    after = {path: store.info(path)["ETag"] for path in store.find("night/labels/2026/data")}
    assert parts_at_stop.items() < after.items()
    row_counts = Counter(row["id"] for row in read_rows(store, "night/labels/2026/data"))
    assert {row_id for row_id in row_counts if row_id.startswith("2026-11-21")} == ids
    assert set(row_counts.values()) == {1}


def test_failed_rows_are_retried_on_the_cluster_and_the_export_has_every_row(nodes, store):
    store.pipe_file("night/pics/2026-11-20-0.png", draw_noise(3))
    second = nodes.submit("--date", "2026-11-21", "--retry-errors", *engine(0), **VARIABLES)
    output = follow(second, "", None)
    assert second.returncode == 0, output
    assert "1 of 1 failed rows are asked again" in output
    export = [sys.executable, "-m", "pipeline", "export", str(NIGHTLY), "s3://night/clean", *engine(0)]
    done = subprocess.run([*export, "--date", "2026-11-21"], cwd=ROOT, env={**nodes.env, **VARIABLES}, check=False)
    assert done.returncode == 0
    ids = [row["id"] for row in read_rows(store, "night/clean")]
    assert sorted(ids) == sorted([f"2026-11-20-{n}" for n in range(12)] + [f"2026-11-21-{n}" for n in range(24)])


def test_a_submission_holds_no_credentials(nodes):
    jobs = nodes.open_client().list_jobs()
    assert jobs
    assert SECRET not in str(jobs)
    assert all("AWS_SECRET_ACCESS_KEY" not in (job.runtime_env or {}).get("env_vars", {}) for job in jobs)


def test_an_output_on_a_disk_that_the_nodes_do_not_share_is_refused(nodes, store):
    partition(store, "2026-11-25", 4)
    process = nodes.submit(*engine(0), **{**VARIABLES, "OUTPUT": str(nodes.hidden / "labels")})
    output = process.communicate()[0]
    assert (process.returncode, "does not see the folder" in output) == (2, True), output
