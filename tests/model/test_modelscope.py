"""Weights from ModelScope, with its own library against a server that stands in for the hub."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from modelscope_hub import HubConfig, set_default_config

from pipeline.__main__ import main
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.model.checkpoint_location import compute_identity, locate_checkpoint, locate_small_files

pytestmark = pytest.mark.process
WEIGHTS = "ms://acme/tiny"


class Hub:
    """Holds one model, acme/tiny, in revisions of some files. `fetched` are the names of files that were asked for."""

    def __init__(self, revisions: dict[str, dict[str, bytes]]):
        self.revisions = revisions
        self.fetched: list[str] = []
        self.status = 200

    def find_body(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        files = self.revisions.get(query.get("Revision", ["master"])[0])
        if self.status != 200 or files is None or not path.startswith("/api/v1/models/acme/tiny/"):
            return (self.status if self.status != 200 else 404), b'{"Code": 1, "Message": "no"}'
        if path.endswith("/repo/files"):
            listed = [
                {"Path": name, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Type": "blob"}
                for name, data in files.items()
            ]
            return 200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode()
        self.fetched.append(query["FilePath"][0])
        return 200, files[query["FilePath"][0]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = write_random_checkpoint(tmp_path / "source", "qwen2_5_vl")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"README.md": b"hi"}
    served = Hub({"master": files, "v1": files | {"generation_config.json": b"{}"}})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlparse(self.path)
            status, body = served.find_body(url.path, parse_qs(url.query))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME", "VLBATCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    set_default_config(HubConfig())  # the library reads the environment once
    yield served
    server.shutdown()
    server.server_close()


def test_small_files_come_first_and_weights_once(hub):
    small = locate_small_files(WEIGHTS)
    assert not {"model.safetensors", "README.md"} & set(hub.fetched)
    whole = locate_checkpoint(WEIGHTS)
    assert whole == small
    assert (whole / "model.safetensors").read_bytes() == hub.revisions["master"]["model.safetensors"]
    count = len(hub.fetched)
    assert locate_checkpoint(WEIGHTS) == whole
    assert len(hub.fetched) == count


def test_an_identity_needs_no_weights_and_keeps_workers_to_it(hub):
    identity = compute_identity(WEIGHTS)
    assert hub.fetched == []
    assert identity.startswith("master@")
    assert compute_identity(WEIGHTS, "v1").startswith("v1@")
    assert locate_checkpoint(WEIGHTS, identity) == locate_checkpoint(WEIGHTS)
    hub.revisions["master"] = hub.revisions["v1"]
    assert compute_identity(WEIGHTS) != identity
    with pytest.raises(JobError, match="has other files than when this run started"):
        locate_checkpoint(WEIGHTS, identity)


def test_a_run_answers_with_weights_from_modelscope(hub, workspace):
    workspace.write_manifest(workspace.draw_images(1))
    path = str(workspace.write_job_file(model={"weights": WEIGHTS}, engine={"kind": "torch", "slots": 1}))
    assert main(["run", path, "--local", "--set", "answer.max_new_tokens=4"]) == 0
    assert [row["model"] for row in workspace.read_answers()] == [WEIGHTS]


@pytest.mark.parametrize(
    ("weights", "status", "message"),
    [
        ("ms://acme", 200, "is not an id of ModelScope; write ms://OWNER/NAME"),
        ("ms://acme/other", 200, "no such model or revision"),
        (WEIGHTS, 401, "wants MODELSCOPE_API_TOKEN to know you"),
        (WEIGHTS, 403, "does not let you read it"),
    ],
)
def test_a_refusal_says_what_to_do(hub, weights, status, message):
    hub.status = status
    with pytest.raises(JobError, match=rf"^model\.weights: .*{message}"):
        locate_small_files(weights)


def test_without_the_library_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(JobError, match=r"pip install 'vlbatch\[modelscope\]'"):
        locate_small_files(WEIGHTS)
