"""A small part of the Hugging Face hub's HTTP API over files in memory: data sets, their commits, files by range."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfFileSystem


class FakeHub:
    """`commits` has the files of each commit of each repository, oldest first."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.are_private: dict[str, bool] = {}  # repositories that were created by a request

    def commit(self, repository: str, **changes: bytes) -> str:
        """Returns the name of the commit."""
        commits = self.commits.setdefault(repository, [])
        commits.append({**(commits[-1] if commits else {}), **changes})
        return self.name_commit(repository, len(commits) - 1)

    def name_commit(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def find_commit(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits.get(repository, [])
        names = [self.name_commit(repository, number) for number in range(len(commits))]
        if revision == "main" and commits:
            return names[-1], commits[-1]
        return next(((name, files) for name, files in zip(names, commits, strict=True) if name == revision), None)


class HubHandler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "datasets":  # datasets/OWNER/NAME/resolve/REVISION/FILE
            self.send_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            return
        repository, action = "/".join(parts[2:4]), parts[4:5]
        revision = parts[5] if len(parts) > 5 else "main"
        found = self.hub.find_commit(repository, revision)
        if found is None:
            error = "RepoNotFound" if repository not in self.hub.commits else "RevisionNotFound"
            self.send_body(404, b"{}", **{"X-Error-Code": error})
        elif action == ["tree"]:
            folder, is_deep = "/".join(parts[6:]), parse_qs(url.query).get("recursive") in (["True"], ["true"])
            self.send_json(list_tree(found[1], folder, is_deep))
        else:
            self.send_json({"id": repository, "sha": found[0], "siblings": [{"rfilename": name} for name in found[1]]})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        repository = "/".join(parts[2:4])
        if parts[1:] == ["validate-yaml"]:
            self.send_json({"errors": [], "warnings": []})
        elif parts[1:] == ["repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.are_private[name] = wanted.get("visibility") == "private"
            self.hub.commit(name, **{".gitattributes": b""})
            self.send_json({"url": f"http://{self.headers['Host']}/datasets/{name}", "name": name})
        elif parts[4] == "preupload":
            files = self.hub.commits[repository][-1]
            self.send_json({"files": [describe_upload(file["path"], files) for file in json.loads(body)["files"]]})
        else:
            self.hub.commits[repository].append(apply_commit(self.hub.commits[repository][-1], body))
            commit = self.hub.name_commit(repository, len(self.hub.commits[repository]) - 1)
            url = f"http://{self.headers['Host']}/datasets/{repository}/commit/{commit}"
            self.send_json({"success": True, "commitOid": commit, "commitUrl": url})

    def send_file(self, repository: str, revision: str, name: str) -> None:
        found = self.hub.find_commit(repository, revision)
        if found is None or name not in found[1]:
            self.send_body(404, b"{}", **{"X-Error-Code": "EntryNotFound"})
            return
        content, span = found[1][name], self.headers.get("Range", "").removeprefix("bytes=")
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{hash_git_blob(content)}"'}
        if span:
            start, _, end = span.partition("-")
            data = content[int(start) : int(end or len(content)) + 1]
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(data) - 1}/{len(content)}"
            self.send_body(206, data, **headers)
        else:
            self.send_body(200, content, **headers)

    def send_json(self, value: object) -> None:
        self.send_body(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def send_body(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def describe_upload(name: str, files: dict[str, bytes]) -> dict[str, object]:
    oid = hash_git_blob(files[name]) if name in files else None
    return {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}


def apply_commit(files: dict[str, bytes], body: bytes) -> dict[str, bytes]:
    changed = dict(files)
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "file":
            changed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "deletedFile":
            del changed[line["value"]["path"]]
    return changed


def list_tree(files: dict[str, bytes], folder: str, is_deep: bool) -> list[dict[str, object]]:
    entries: dict[str, dict[str, object]] = {}
    for name, content in files.items():
        if folder and not name.startswith(f"{folder}/"):
            continue
        below = name[len(folder) :].lstrip("/").split("/")
        for depth in range(1, len(below)):
            path = f"{folder}/{'/'.join(below[:depth])}".lstrip("/")
            if is_deep or depth == 1:
                entries[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
        if is_deep or len(below) == 1:
            entries[name] = {"type": "file", "path": name, "size": len(content), "oid": hash_git_blob(content)}
    return list(entries.values())


def hash_git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub talks to in this process."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    try:
        yield hub
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
