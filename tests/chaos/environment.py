"""The environment of a chaos test: a real S3 server behind a proxy, a Ray cluster of several nodes, and a driver.

Everything runs on this machine with its files in one folder, so that processes left over can be found by it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import yaml
from PIL import Image
from ray.cluster_utils import Cluster

from pipeline.cluster.ray_session import omit_unused_services
from tests.faults import Proxy, Rule
from tests.seaweed import KEY, SECRET, Seaweed

ROOT = Path(__file__).parents[2]
BUCKET = "chaos"
WORKER_NODES, CPUS_PER_NODE = 2, 4  # two drivers have room for their workers
PREPARE, GENERATE = "PrepareWorker", "GenerateWorker"
RANK, DECODER = "pipeline.model.engines.torch.tp_worker", "pipeline.media.decoder_process"
START_TRIES = 5


class ChaosEnvironment:
    """A context manager around some episodes. `rule` injects faults into requests to the storage."""

    def __init__(self, rule: Rule | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="vl"))  # short, because Ray puts sockets into it
        (self.folder / "tmp/ray").mkdir(parents=True)  # where Ray writes the address of its newest cluster
        self.seaweed = Seaweed(self.folder / "weed")
        self.proxy = Proxy(self.seaweed.host, rule)
        self.driver: subprocess.Popen[bytes] | None = None
        self.cluster: Any = None
        self.job_file = ""

    def __enter__(self) -> ChaosEnvironment:
        self.variables = {
            **self.seaweed.environment,
            "AWS_ENDPOINT_URL_S3": self.proxy.url,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder / "tmp"),  # every process inherits it, decoders too
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.previous_variables = {name: os.environ.get(name) for name in [*self.variables, "RAY_ADDRESS"]}
        os.environ.update(self.variables)
        os.environ.pop("RAY_ADDRESS", None)
        try:
            self.open()
        except BaseException:  # else later tests would use this storage
            self.kill_processes()
            self.restore_variables()
            raise
        return self

    def open(self) -> None:
        self.seaweed.__enter__()
        self.proxy.__enter__()
        self.store = s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.seaweed.url, skip_instance_cache=True, use_listings_cache=False
        )
        self.store.mkdir(BUCKET)
        self.start_cluster()

    def __exit__(self, *_: object) -> None:
        self.end_driver(signal.SIGKILL)
        self.kill_cluster()
        self.proxy.__exit__()
        self.seaweed.__exit__()
        self.restore_variables()

    def restore_variables(self) -> None:
        for name, value in self.previous_variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(self.folder, ignore_errors=True)

    # Ray

    def start_cluster(self) -> None:
        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": str(self.folder / "ray")}

        def start() -> None:
            # shutdown_at_exit starts Ray's reaper, which would kill this process group with a removed node
            self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

        retry_start(start, clean_up=self.kill_processes)
        for _ in range(WORKER_NODES):
            self.add_node()

    def add_node(self) -> None:
        retry_start(lambda: self.cluster.add_node(num_cpus=CPUS_PER_NODE))

    def kill_node(self, choice: int) -> None:
        nodes = self.cluster.list_all_nodes()[1:]
        self.cluster.remove_node(nodes[choice % len(nodes)], allow_graceful=False)

    def kill_cluster(self) -> None:
        """Kill all processes at once, like a power cut."""
        for node in self.cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
        self.kill_processes()
        if self.driver:
            self.driver.wait()
        self.cluster.worker_nodes.clear()
        self.cluster.head_node = None

    def kill_processes(self) -> None:
        for process in self.list_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # the storage

    def restart_storage(self, down_s: float) -> None:
        self.seaweed.__exit__()
        time.sleep(down_s)
        self.seaweed.__enter__()

    # the job

    def write_job(
        self,
        name: str,
        *,
        rows: int,
        broken_rows: int,
        engine: dict[str, Any],
        output: dict[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        """Write pictures, some of them broken, a manifest and a job over them."""
        pictures = [create_picture(seed) for seed in range(7)]
        ids = [f"{number:05}" for number in range(rows)]
        self.ids = set(ids)
        self.broken_ids = set(ids[:: rows // broken_rows][:broken_rows]) if broken_rows else set()
        self.output = f"{BUCKET}/{name}/out"
        objects = {
            f"{BUCKET}/{name}/pics/{row_id}.png": b"no picture" if row_id in self.broken_ids else pictures[index % 7]
            for index, row_id in enumerate(ids)
        }
        manifest = io.BytesIO()
        pq.write_table(pa.table({"id": ids, "image": [f"s3://{path}" for path in objects]}), manifest)
        self.store.pipe({**objects, f"{BUCKET}/{name}/m.parquet": manifest.getvalue()})
        job = {
            "name": "chaos",
            "input": {"manifest": f"s3://{BUCKET}/{name}/m.parquet", "id": "id", "media": ["image"]},
            "prompt": {"user": "What is it?"},
            "model": {"weights": "builtin:tiny"},
            "engine": engine,
            "workers": {"prepare": {"min": 2, "max": 2}, "generate": {"min": 2, "max": 2}},
            "limits": {"error_rate": 1},
            "output": {"path": f"s3://{self.output}", "chunk_rows": 8, **(output or {})},
        }
        self.job_file = f"{self.folder}/{name}.yaml"
        Path(self.job_file).write_text(yaml.safe_dump({**job, **sections}))
        self.proxy.seen.clear()

    def start_driver(self) -> None:
        with open(self.folder / "driver.log", "ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "run", self.job_file],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": self.cluster.address},
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def end_driver(self, signal_number: signal.Signals) -> None:
        if self.driver and self.driver.poll() is None:
            self.driver.send_signal(signal_number)
            self.driver.wait()

    def read_driver_log(self) -> str:
        """Return the last 3,000 characters that drivers wrote."""
        path = self.folder / "driver.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # the state of the run

    def list_parts(self) -> list[str]:
        try:
            return [path for path in self.store.find(f"{self.output}/data") if path.endswith(".parquet")]
        except FileNotFoundError:
            return []

    def count_repeated_rows(self) -> int:
        """Count the rows that were prepared again: their pictures were fetched again without a fault."""
        requests = [seen for seen in list(self.proxy.seen) if seen.method == "GET" and not seen.fault]
        paths = [request.path for request in requests if "/pics/" in request.path]
        return len(paths) - len(set(paths))

    def list_processes(self) -> Iterator[psutil.Process]:
        """List the processes of runs and of Ray in this environment, orphans too."""
        kept_pids = {os.getpid(), self.seaweed.process.pid}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                log = os.readlink(f"/proc/{process.pid}/fd/2")  # Ray's workers overwrite their environment
                has_our_tmpdir = process.environ().get("TMPDIR") == str(self.folder / "tmp")
                if (log.startswith(str(self.folder)) or has_our_tmpdir) and process.pid not in kept_pids:
                    yield process

    def list_workers(self, title: str) -> list[psutil.Process]:
        """List processes with this text in their command line, oldest first."""
        workers = []
        for process in self.list_processes():
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    workers.append(process)
        return sorted(workers, key=lambda process: process.create_time())


def retry_start(start: Callable[[], object], clean_up: Callable[[], object] = lambda: None) -> None:
    """Start a node, again if it takes longer than Ray's own limit of 30 s, as on a loaded machine."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            with omit_unused_services():
                start()
        except Exception:
            clean_up()
            if not tries_left:
                raise
        else:
            return


def create_picture(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((48, 32), 20 + seed).save(sink, "PNG")
    return sink.getvalue()
