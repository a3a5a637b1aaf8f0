"""Fetching from files, servers and the row itself: what is retried, and what fails at once."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import FetchError
from pipeline.fetch.blob import split_page_fragment
from pipeline.fetch.downloader import decode_data_uri
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)
MP4 = b"\0\0\0\x20ftypisom" + bytes(3000)


class Behaviour(BaseHTTPRequestHandler):
    """Each path misbehaves in its own way."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, int] = {}  # noqa: RUF012 - reset by the fixture
    connections: set[tuple[str, int]] = set()  # noqa: RUF012

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.seen[path] = self.seen.get(path, 0) + 1
        self.connections.add(self.client_address)
        getattr(self, path.strip("/").replace("-", "_").split("/")[0])()

    def answer(self, body=PNG, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self):
        self.answer()

    def video(self):
        self.answer(MP4)

    def storm(self):
        self.answer(b"busy", 503) if self.seen["/storm"] < 4 else self.answer()

    def busy_for_ever(self):
        self.answer(b"busy", 503)

    def later(self):
        self.answer(b"", 429, Retry_After="1") if self.seen["/later"] < 2 else self.answer()

    def gone(self):
        self.answer(b"", 404)

    def forbidden(self):
        self.answer(b"", 403)

    def odd(self):
        self.answer(b"", 418)

    def cut(self):
        self.answer(PNG[:500], Content_Length="1008") if self.seen["/cut"] < 3 else self.answer()
        self.close_connection = True

    def drip(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    def drip_headers(self):
        for letter in "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 100:
            self.wfile.write(letter.encode())
            time.sleep(0.1)

    def silent(self):
        time.sleep(20)

    def huge(self):
        self.answer(PNG, Content_Length=str(10**13))

    def endless(self):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(PNG * 100)

    def bomb(self):
        import gzip

        self.answer(gzip.compress(PNG + bytes(50_000_000)), Content_Encoding="gzip")

    def to(self):
        self.answer(b"", 302, Location=self.path.partition("?")[2])

    def loop(self):
        self.answer(b"", 301, Location="/loop")

    def nowhere(self):
        self.answer(b"", 302)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Behaviour)
    http_server.daemon_threads = True
    http_server.handle_error = lambda *_: None  # clients hang up on purpose
    threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{http_server.server_port}"
    http_server.shutdown()


def make_job(tmp_path: Path, *, hosts: tuple[str, ...] = (), deadline_s: float = 20.0) -> Job:
    return Job.model_validate(
        {
            "name": "fetch",
            "input": {"manifest": "m.parquet", "roots": [str(tmp_path)], "hosts": hosts},
            "model": {"weights": "builtin:tiny"},
            "limits": {"image": {"bytes": "1MiB"}, "video": {"bytes": "4MiB"}, "deadline_s": deadline_s},
            "output": {"path": "out"},
        }
    )


@pytest.fixture
def fetcher(server, tmp_path, short_waits, monkeypatch):
    Behaviour.seen.clear()
    Behaviour.connections.clear()
    with Fetcher(make_job(tmp_path, hosts=(server,))) as open_fetcher:
        yield open_fetcher


def fetch_error(fetcher: Fetcher, source: str, **settings: float) -> FetchError:
    with pytest.raises(FetchError) as raised:
        fetcher.fetch(source, **settings)
    return raised.value


def test_an_image_stays_in_memory_and_a_video_goes_to_a_file_that_close_deletes(fetcher, server):
    image = fetcher.fetch(f"http://{server}/good")
    assert (image.kind, image.data, image.path) == ("image", PNG, None)
    with fetcher.fetch(f"http://{server}/video") as video:
        assert video.kind == "video"
        assert video.path.read_bytes() == MP4
    assert not video.path.exists()


def test_several_503_responses_are_retried(fetcher, server):
    assert fetcher.fetch(f"http://{server}/storm").data == PNG
    assert Behaviour.seen["/storm"] == 4


def test_a_server_that_stays_busy_fails_after_ten_attempts(fetcher, server):
    error = fetch_error(fetcher, f"http://{server}/busy-for-ever")
    assert error.kind == "unavailable"
    assert Behaviour.seen["/busy-for-ever"] == 10


def test_retry_after_is_respected(fetcher, server):
    started = time.monotonic()
    assert fetcher.fetch(f"http://{server}/later").data == PNG
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize(("path", "kind"), [("gone", "not_found"), ("forbidden", "denied"), ("odd", "refused")])
def test_a_permanent_error_is_not_retried(path, kind, fetcher, server):
    assert fetch_error(fetcher, f"http://{server}/{path}").kind == kind
    assert Behaviour.seen[f"/{path}"] == 1


def test_a_cut_connection_is_retried(fetcher, server):
    assert fetcher.fetch(f"http://{server}/cut").data == PNG


@pytest.mark.parametrize("path", ["drip", "drip-headers", "silent"])
def test_a_slow_server_fails_at_the_deadline(path, server, tmp_path):
    with Fetcher(make_job(tmp_path, hosts=(server,), deadline_s=0.5)) as fetcher:
        error = fetch_error(fetcher, f"http://{server}/{path}")
    assert error.kind == "deadline"
    assert "limits.deadline_s" in error.message


def test_the_remaining_time_of_a_row_bounds_a_fetch(fetcher, server):
    assert fetch_error(fetcher, f"http://{server}/silent", deadline_s=0.3).kind == "deadline"


@pytest.mark.parametrize("path", ["huge", "endless", "bomb"])
def test_too_many_bytes_are_refused_whether_declared_or_not(path, fetcher, server):
    error = fetch_error(fetcher, f"http://{server}/{path}")
    assert error.kind == "too_large"
    assert "limits." in error.message


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("http://169.254.169.254/latest/meta-data/", "host"),
        ("http://127.0.0.1:1/", "host"),
        ("//localhost/x", "host"),
        ("file:///etc/passwd", "redirect"),
        ("ftp://127.0.0.1/x", "redirect"),
        ("gopher://127.0.0.1/x", "redirect"),
    ],
)
def test_every_redirect_is_checked_like_the_first_url(target, kind, fetcher, server):
    assert fetch_error(fetcher, f"http://{server}/to?{target}").kind == kind


def test_a_redirect_to_the_metadata_service_is_refused_with_all_hosts_allowed(server):
    from yarl import URL

    from pipeline.fetch.web import check_url

    for url in ("http://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://0xa9fea9fe/"):
        with pytest.raises(FetchError) as raised:
            check_url(URL(url), ())
        assert raised.value.kind == "address"


@pytest.mark.parametrize("path", ["loop", "nowhere"])
def test_redirects_that_lead_nowhere_fail(path, fetcher, server):
    assert fetch_error(fetcher, f"http://{server}/{path}").kind == "redirect"


def test_an_allowed_redirect_is_followed(fetcher, server):
    assert fetcher.fetch(f"http://{server}/to?http://{server}/good").data == PNG
    assert fetcher.fetch(f"http://{server}/to?/good").data == PNG


def test_connections_are_reused(fetcher, server):
    for _ in range(5):
        fetcher.fetch(f"http://{server}/good")
    assert len(Behaviour.connections) == 1


def test_a_signed_url_is_sent_unchanged(fetcher, server, monkeypatch):
    paths: list[str] = []
    monkeypatch.setattr(Behaviour, "good", lambda self: (paths.append(self.path), self.answer()))
    fetcher.fetch(f"http://{server}/good/a%2Fb%20c?X-Amz-Signature=a%2Bb%2F&x=1+2")
    assert paths == ["/good/a%2Fb%20c?X-Amz-Signature=a%2Bb%2F&x=1+2"]


def test_no_message_contains_a_signature(fetcher, server):
    error = fetch_error(fetcher, f"http://me:hush@{server}/gone?sig=hush&token=hush")
    assert "hush" not in str(error)


def test_announced_sources_are_prefetched_and_fetched_only_once(fetcher, server):
    sources = [f"http://{server}/good/{number}" for number in range(40)]
    fetcher.prefetch(sources)
    time.sleep(0.5)
    assert 2 <= len(Behaviour.seen) <= 16
    assert [fetcher.fetch(source).data for source in sources] == [PNG] * 40
    assert set(Behaviour.seen.values()) == {1}


def test_a_failed_prefetch_is_reported_when_the_source_is_fetched(fetcher, server):
    fetcher.prefetch([f"http://{server}/gone", f"http://{server}/good"])
    assert fetch_error(fetcher, f"http://{server}/gone").kind == "not_found"
    assert fetcher.fetch(f"http://{server}/good").data == PNG


def test_prefetched_videos_that_nobody_fetches_leave_no_files(fetcher, server):
    fetcher.prefetch([f"http://{server}/video/{number}" for number in range(4)])
    time.sleep(0.5)
    fetcher.prefetch([])
    assert [path.name for path in fetcher.reader.scratch_folder.path.iterdir()] == [".lock"]


def test_local_files_are_recognised_by_content_and_checked_before_they_are_read(fetcher, tmp_path):
    (tmp_path / "clip.jpg").write_bytes(MP4)
    assert fetcher.fetch("clip.jpg").path == tmp_path / "clip.jpg"
    (tmp_path / "big.png").write_bytes(PNG + bytes(2 << 20))
    assert fetch_error(fetcher, "big.png").kind == "too_large"
    assert fetch_error(fetcher, "no.png").kind == "not_found"


def test_bytes_and_data_uris_need_no_fetch(fetcher):
    assert fetcher.fetch(PNG).data == PNG
    assert fetcher.fetch("data:image/png;base64," + base64.b64encode(PNG).decode()).data == PNG
    with fetcher.fetch(MP4) as video:
        assert video.path.read_bytes() == MP4
    with pytest.raises(FetchError, match=r"limits\.image\.bytes"):
        fetcher.fetch(PNG + bytes(2 << 20))


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,+/8=",
        "data:image/png;base64,-_8",
        "DATA:;BASE64,+/8",
        "data:image/png;charset=utf-8;base64,%2B%2F8%3D",
        "data:image/png;base64, +/\n8=\n",
        "data:application/octet-stream,%FB%FF",
    ],
)
def test_unusual_data_uris_are_decoded(uri):
    assert decode_data_uri(uri) == b"\xfb\xff"


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,A", "data:image/png;base64,A*=="])
def test_broken_data_uris_are_refused(uri):
    with pytest.raises(FetchError) as raised:
        decode_data_uri(uri)
    assert raised.value.kind == "data_uri"


@pytest.mark.parametrize(
    ("uri", "fetched", "pages"),
    [
        ("/in/a.pdf#page=x", "/in/a.pdf", "x"),
        ("s3://b/a#2.pdf", "s3://b/a#2.pdf", ""),  # a key may hold it
        ("s3://b/a#page=2.png", "s3://b/a#page=2.png", ""),
        ("s3://b/a.pdf#page=2", "s3://b/a.pdf", "2"),
        ("https://a.com/a.pdf#2", "https://a.com/a.pdf", "#2"),
        ("https://a.com/a.pdf#page 2", "https://a.com/a.pdf", "#page 2"),
        ("https://a.com/a.pdf?x=1&page=2", "https://a.com/a.pdf?x=1&page=2", "?x=1&page=2"),
        ("https://a.com/a.pdf?page=2#page=1-", "https://a.com/a.pdf?page=2", "1-"),
        ("https://a.com/a.pdf?homepage=2", "https://a.com/a.pdf?homepage=2", ""),
    ],
)
def test_what_a_uri_says_about_pages_is_never_lost(uri, fetched, pages):
    assert split_page_fragment(uri) == (fetched, pages)


def test_a_page_fragment_is_split_off_the_uri(fetcher, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "odd#name.png").write_bytes(PNG)
    assert fetcher.fetch("scan.pdf#page=2-4").pages == "2-4"
    assert fetcher.fetch("odd#name.png").data == PNG


def test_a_full_disk_is_reported_and_not_retried_as_a_network_error(fetcher, server, monkeypatch):
    def fail_with_full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.fetch.blob.os.pwrite", fail_with_full_disk)
    error = fetch_error(fetcher, f"http://{server}/video")
    assert (error.kind, Behaviour.seen["/video"]) == ("disk", 1)
    assert fetch_error(fetcher, MP4).kind == "disk"
    assert [path.name for path in fetcher.reader.scratch_folder.path.iterdir()] == [".lock"]
