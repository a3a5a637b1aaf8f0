"""The fault proxy passes requests on unchanged and injects exactly the ordered faults."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults import BUSY, CUT, EXPIRED, LOST, Fault, Proxy, first, only, storm

BODY = bytes(range(256)) * 100


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    puts: list[tuple[str, bytes, str]] = []  # noqa: RUF012 - reset by the fixture

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY)

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.puts.append((self.path, body, self.headers["Host"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    serving.daemon_threads = True
    threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.fixture
def proxy(server):
    Echo.puts.clear()
    with Proxy(server) as opened:
        yield opened


def send_request(proxy, method="GET", path="/a%2Fb?x=1", body=None, **headers):
    link = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    link.request(method, path, body=body, headers=headers)
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_without_a_rule_requests_and_responses_pass_unchanged(proxy):
    status, headers, body = send_request(proxy, Range="bytes=0-9")
    assert (status, headers["ETag"], body) == (200, '"e"', BODY)
    assert send_request(proxy, "HEAD")[1]["Content-Length"] == str(len(BODY))
    assert send_request(proxy, "PUT", "/k", b"data", Host="name.of.old:1")[0] == 204
    assert Echo.puts == [("/k", b"data", "name.of.old:1")]
    assert send_request(proxy, "PUT", "/parts", iter([b"da", b"ta"]))[0] == 204
    assert Echo.puts[1][1] == b"data"
    assert [(seen.method, seen.path, seen.range) for seen in proxy.seen[:2]] == [
        ("GET", "/a%2Fb?x=1", "bytes=0-9"),
        ("HEAD", "/a%2Fb?x=1", ""),
    ]
    assert proxy.seen[0].sent == len(BODY)


def test_an_error_status_replaces_the_servers_response(proxy):
    proxy.rule = only(first(2, BUSY), method="PUT", path="/k")
    assert send_request(proxy)[0] == 200
    answers = [send_request(proxy, "PUT", "/k", b"x") for _ in range(3)]
    assert [status for status, *_ in answers] == [503, 503, 204]
    assert b"<Code>SlowDown</Code>" in answers[0][2]
    assert len(Echo.puts) == 1
    proxy.rule = first(1, EXPIRED)
    assert (send_request(proxy)[0], send_request(proxy)[0]) == (400, 200)


def test_a_lost_response_belongs_to_a_request_that_was_done(proxy):
    proxy.rule = first(1, LOST)
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        send_request(proxy, "PUT", "/k", b"x")
    assert Echo.puts == [("/k", b"x", proxy.url.removeprefix("http://"))]


@pytest.mark.parametrize("fault", [CUT, Fault(keep=5000)])
def test_a_cut_response_is_incomplete(fault, proxy):
    proxy.rule = first(1, fault)
    with pytest.raises(http.client.IncompleteRead) as cut:
        send_request(proxy)
    assert cut.value.partial == BODY[: fault.keep]


def test_a_short_response_looks_complete(proxy):
    proxy.rule = first(1, Fault(short=5000))
    assert send_request(proxy)[2] == BODY[:5000]


def test_responses_are_delayed_and_slow(proxy):
    proxy.rule = first(1, Fault(delay_s=0.3, bytes_per_s=100_000))
    started = time.monotonic()
    assert send_request(proxy)[2] == BODY
    assert time.monotonic() - started > 0.5


def test_a_storm_is_reproducible(proxy):
    proxy.rule = storm(0.5, BUSY, seed=1)
    once = [send_request(proxy)[0] for _ in range(20)]
    proxy.rule = storm(0.5, BUSY, seed=1)
    assert [send_request(proxy)[0] for _ in range(20)] == once
    assert set(once) == {200, 503}
