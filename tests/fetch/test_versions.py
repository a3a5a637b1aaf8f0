"""Which version of a file a URI leads to, as stores, servers and disks tell it."""

from __future__ import annotations

from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.errors import FetchError
from pipeline.fetch.versions import VersionReader
from pipeline.job.spec import Job
from tests.fetch.conftest import serve_scans

LAST_MODIFIED = "Sun, 29 Nov 2026 06:00:00 GMT"


class Server(BaseHTTPRequestHandler):
    """Allows GET alone, as signed URLs do."""

    def do_GET(self):
        self.send_response(404 if self.path == "/missing.png" else 206 if "Range" in self.headers else 200)
        if self.path != "/bare.png":
            self.send_header("ETag", '"v1"')
            self.send_header("Last-Modified", LAST_MODIFIED)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read_versions(uris, version="etag", known=None, **access):
    job = {
        "name": "v",
        "input": {"manifest": "m", "version": version, **access},
        "model": {"weights": "builtin:tiny"},
        "output": {"path": "out"},
    }
    with closing(VersionReader(Job.model_validate(job), known)) as reader:
        return reader.read_versions(uris)


def describe(version):
    return version.kind if isinstance(version, FetchError) else version


@pytest.mark.parametrize(("version", "expected"), [("etag", '"v1"'), ("mtime", LAST_MODIFIED)])
def test_a_web_server_tells_the_version(version, expected, host):
    assert read_versions([f"http://{host}/a.png#page=2"], version, hosts=[host]) == [expected]


def test_what_cannot_be_read_is_an_error_of_its_uri_alone(host):
    uris = [f"http://{host}/{name}.png" for name in ("a", "missing", "bare", "a")]
    found = read_versions(uris, hosts=[host])
    assert list(map(describe, found)) == ['"v1"', "not_found", "no_version", '"v1"']
    assert "its server tells no etag; choose another input.version, or none" in found[2].message


def test_the_rules_of_access_hold_for_versions_too(host, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    uris = [f"http://{host}/a.png", str(tmp_path / "a.png"), "s3://other/a.png"]
    found = read_versions(uris, roots=[str(tmp_path / "elsewhere")], stores=["s3://scans"])
    assert list(map(describe, found)) == ["address", "root", "store"]


@pytest.mark.parametrize("version", ["etag", "mtime"])
def test_a_local_file_that_is_written_again_has_another_version(version, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    keys = {"version": version, "roots": [str(tmp_path)]}
    first = read_versions([str(path)], **keys)
    assert first == read_versions([path.as_uri()], **keys)
    path.write_bytes(b"another")
    assert read_versions([str(path)], **keys) != first


def test_known_versions_are_not_read_again():
    assert read_versions(["s3://scans/a.png"], known={"s3://scans/a.png": "v7"}) == ["v7"]


@pytest.mark.process
def test_a_store_tells_the_version():
    with serve_scans({"a.png": b"one"}) as client:
        head = client.head_object(Bucket="scans", Key="a.png")
        assert read_versions(["s3://scans/a.png"], stores=["s3://scans"]) == [head["ETag"]]
        expected = head["LastModified"].isoformat()
        assert read_versions(["s3://scans/a.png"], "mtime", stores=["s3://scans"]) == [expected]
        missing = read_versions(["s3://scans/b.png", "s3://scans"], stores=["s3://scans"])
        assert describe(missing[0]) == "not_found"
