"""A real S3 server (SeaweedFS) on this machine. It checks credentials, and can be restarted with its data."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import s3fs
from PIL import Image

KEY, SECRET = "reader", "a-secret-of-the-test"
FIXED = ("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=100", "-filer", "-s3")
QUIET = ("-s3.port.iceberg=0", "-s3.port.lance=0")  # these ports are fixed, so another test's server may hold them
PARTS = ("master", "volume", "filer", "s3")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for unbound in sockets:
        unbound.bind(("127.0.0.1", 0))
    numbers = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return numbers


class Seaweed:
    """A context manager. `environment` holds the variables that make s3:// URLs use this server."""

    def __init__(self, folder: Path):
        self.folder, self.ports = folder, free_ports(8)
        self.host = f"127.0.0.1:{self.ports[3]}"
        self.url = f"http://{self.host}"
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        (folder / "volumes").mkdir(parents=True, exist_ok=True)
        user = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        identities = [{**user, "actions": ["Admin", "Read", "List", "Write"]}]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    def __enter__(self) -> Seaweed:
        listen = [f"-{name}.port={port}" for name, port in zip(PARTS, self.ports[:4], strict=True)]
        listen += [f"-{name}.port.grpc={port}" for name, port in zip(PARTS, self.ports[4:], strict=True)]
        weed = os.path.join(os.path.dirname(sys.executable), "weed")
        paths = [f"-dir={self.folder}/volumes", f"-s3.config={self.folder}/s3.json"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [weed, "server", *FIXED, *QUIET, *paths, *listen], cwd=self.folder, stdout=log, stderr=log
            )
        for _ in range(1200):
            if is_running(self.url):
                return self
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)
        raise AssertionError("the S3 server does not start")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def is_running(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 403  # running, and asking for credentials
    except OSError:
        return False
    return True


def draw_noise(shade: int) -> bytes:
    """A PNG to store."""
    sink = io.BytesIO()
    Image.effect_noise((48, 32), 20 + shade).save(sink, "PNG")
    return sink.getvalue()


def read_rows(store: s3fs.S3FileSystem, folder: str) -> list[dict[str, Any]]:
    """The rows of all Parquet files below a folder of the server."""
    store.invalidate_cache()
    paths = [path for path in store.find(folder) if path.endswith(".parquet")]
    return [row for path in paths for row in pq.read_table(io.BytesIO(store.cat_file(path))).to_pylist()]
