"""Where runs are disturbed: real S3 behind a proxy, a real Ray of several nodes, and the driver as a user starts it.

Everything runs on this machine and below one folder, so that what is left over can be found.
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
from collections import Counter
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

from tests.faults import Proxy, Rule
from tests.seaweed import KEY, SECRET, Seaweed

ROOT = Path(__file__).parents[2]
BUCKET = "chaos"
NODES = 2  # beside the head
PREPARE, GENERATE = "MapWorker(MapBatches(PrepareWorker))", "MapWorker(MapBatches(GenerateWorker))"
RANK, DECODER = "pipeline.model.engines.torch.tp_worker", "pipeline.media.decoder_process"
START_TRIES = 5


class Place:
    """Open around some episodes. `rule` is how the storage misbehaves all the while."""

    def __init__(self, rule: Rule | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="vl"))  # short: Ray makes sockets below it
        (self.folder / "tmp/ray").mkdir(parents=True)  # where Ray notes its newest cluster
        self.seaweed = Seaweed(self.folder / "weed")
        self.proxy = Proxy(self.seaweed.host, rule)
        self.driver: subprocess.Popen[bytes] | None = None
        self.cluster: Any = None
        self.job = ""

    def __enter__(self) -> Place:
        self.surroundings = {
            **self.seaweed.environment,
            "AWS_ENDPOINT_URL_S3": self.proxy.url,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder / "tmp"),  # inherited by all that is started here, decoders too
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.before = {name: os.environ.get(name) for name in [*self.surroundings, "RAY_ADDRESS"]}
        os.environ.update(self.surroundings)
        os.environ.pop("RAY_ADDRESS", None)
        try:
            self.open()
        except BaseException:  # or the tests that follow would find this storage
            self.end_all()
            self.restore()
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
        self.end_cluster()
        self.proxy.__exit__()
        self.seaweed.__exit__()
        self.restore()

    def restore(self) -> None:
        for name, value in self.before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(self.folder, ignore_errors=True)

    # Ray

    def start_cluster(self) -> None:
        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": str(self.folder / "ray")}

        def start() -> None:
            # without Ray's reaper, which ends this process group when a node is forgotten
            self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

        patiently(start, clean=self.end_all)
        for _ in range(NODES):
            self.add_node()

    def add_node(self) -> None:
        patiently(lambda: self.cluster.add_node(num_cpus=2))

    def end_node(self, choice: int) -> None:
        nodes = self.cluster.list_all_nodes()[1:]
        self.cluster.remove_node(nodes[choice % len(nodes)], allow_graceful=False)

    def end_cluster(self) -> None:
        """All of it at once, as a power cut would."""
        for node in self.cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
        self.end_all()
        if self.driver:
            self.driver.wait()
        self.cluster.worker_nodes.clear()
        self.cluster.head_node = None

    def end_all(self) -> None:
        for process in self.ours():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # the storage

    def end_storage_and_start_it(self, down_s: float) -> None:
        self.seaweed.__exit__()
        time.sleep(down_s)
        self.seaweed.__enter__()

    # the job

    def fill(self, name: str, *, rows: int, bad: int, engine: dict[str, Any], **sections: Any) -> None:
        """Pictures, some of them none, a manifest and a job over them."""
        shades = [picture(shade) for shade in range(7)]
        ids = [f"{number:05}" for number in range(rows)]
        self.bad = set(ids[:: rows // bad][:bad]) if bad else set()
        self.asked = set(ids)
        self.output = f"{BUCKET}/{name}/out"
        objects = {
            f"{BUCKET}/{name}/pics/{each}.png": b"no picture" if each in self.bad else shades[at % 7]
            for at, each in enumerate(ids)
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
            "output": {"path": f"s3://{self.output}", "chunk_rows": 8},
        }
        self.job = f"{self.folder}/{name}.yaml"
        Path(self.job).write_text(yaml.safe_dump({**job, **sections}))
        self.proxy.seen.clear()

    def start_driver(self) -> None:
        with open(self.folder / "driver.log", "ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "run", self.job],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": self.cluster.address},
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def end_driver(self, number: signal.Signals) -> None:
        if self.driver and self.driver.poll() is None:
            self.driver.send_signal(number)
            self.driver.wait()

    def said(self) -> str:
        """The end of what drivers wrote."""
        path = self.folder / "driver.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # what there is

    def parts(self) -> list[str]:
        try:
            return [path for path in self.store.find(f"{self.output}/data") if path.endswith(".parquet")]
        except FileNotFoundError:
            return []

    def fetched(self) -> int:
        """Rows that were prepared once more than needed, told by who fetched the same picture again."""
        seen = list(self.proxy.seen)
        paths = Counter(each.path for each in seen if each.method == "GET" and "/pics/" in each.path and not each.fault)
        return sum(paths.values()) - len(paths)

    def ours(self) -> Iterator[psutil.Process]:
        """Every process of runs and of Ray that was started below this place, whoever is its parent now."""
        mine = {os.getpid(), self.seaweed.process.pid}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                log = os.readlink(f"/proc/{process.pid}/fd/2")  # Ray's workers write over their environment
                below = log.startswith(str(self.folder)) or process.environ().get("TMPDIR") == str(self.folder / "tmp")
                if below and process.pid not in mine:
                    yield process

    def workers(self, title: str) -> list[psutil.Process]:
        """Processes of ours whose command line says so, oldest first."""
        found = []
        for process in self.ours():
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())


def patiently(start: Callable[[], object], clean: Callable[[], object] = lambda: None) -> None:
    """A loaded machine is sometimes too slow for Ray's own patience, which is 30 s."""
    for left in reversed(range(START_TRIES)):
        try:
            start()
        except Exception:
            clean()
            if not left:
                raise
        else:
            return


def picture(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((48, 32), 20 + shade).save(sink, "PNG")
    return sink.getvalue()
