"""A real S3 server on this machine, which checks credentials and can be ended and started again over what it holds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

KEY, SECRET = "reader", "a-secret-of-the-test"
FIXED = ("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-filer", "-s3")
QUIET = ("-s3.port.iceberg=0", "-s3.port.lance=0")  # fixed ports, that another server of a test may have
PARTS = ("master", "volume", "filer", "s3")


def free_ports(count: int) -> list[int]:
    """That nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    numbers = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return numbers


class Seaweed:
    """Open while it is needed; `environment` makes s3:// mean it."""

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
        who = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        identities = [{**who, "actions": ["Admin", "Read", "List", "Write"]}]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    def __enter__(self) -> Seaweed:
        listen = [f"-{name}.port={port}" for name, port in zip(PARTS, self.ports[:4], strict=True)]
        listen += [f"-{name}.port.grpc={port}" for name, port in zip(PARTS, self.ports[4:], strict=True)]
        weed = os.path.join(os.path.dirname(sys.executable), "weed")
        places = [f"-dir={self.folder}/volumes", f"-s3.config={self.folder}/s3.json"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [weed, "server", *FIXED, *QUIET, *places, *listen], cwd=self.folder, stdout=log, stderr=log
            )
        for _ in range(1200):
            if answers(self.url):
                return self
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)
        raise AssertionError("the S3 server does not start")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 403  # it wants credentials
    except OSError:
        return False
    return True
