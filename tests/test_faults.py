"""The proxy passes everything on as it is, and misbehaves exactly as ordered."""

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
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.fixture
def proxy(server):
    Echo.puts.clear()
    with Proxy(server) as opened:
        yield opened


def asked(proxy, method="GET", path="/a%2Fb?x=1", body=None, **headers):
    link = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    link.request(method, path, body=body, headers=headers)
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_without_a_rule_requests_and_answers_pass_as_they_are(proxy):
    status, headers, body = asked(proxy, Range="bytes=0-9")
    assert (status, headers["ETag"], body) == (200, '"e"', BODY)
    assert asked(proxy, "HEAD")[1]["Content-Length"] == str(len(BODY))
    assert asked(proxy, "PUT", "/k", b"data", Host="name.of.old:1")[0] == 204
    assert Echo.puts == [("/k", b"data", "name.of.old:1")]
    assert asked(proxy, "PUT", "/parts", iter([b"da", b"ta"]))[0] == 204
    assert Echo.puts[1][1] == b"data"
    assert [(seen.method, seen.path, seen.range) for seen in proxy.seen[:2]] == [
        ("GET", "/a%2Fb?x=1", "bytes=0-9"),
        ("HEAD", "/a%2Fb?x=1", ""),
    ]
    assert proxy.seen[0].sent == len(BODY)


def test_a_refusal_comes_in_the_servers_place_as_often_as_ordered(proxy):
    proxy.rule = only(first(2, BUSY), method="PUT", path="/k")
    assert asked(proxy)[0] == 200
    answers = [asked(proxy, "PUT", "/k", b"x") for _ in range(3)]
    assert [status for status, *_ in answers] == [503, 503, 204]
    assert b"<Code>SlowDown</Code>" in answers[0][2]
    assert len(Echo.puts) == 1
    proxy.rule = first(1, EXPIRED)
    assert (asked(proxy)[0], asked(proxy)[0]) == (400, 200)


def test_what_was_done_can_lose_its_answer(proxy):
    proxy.rule = first(1, LOST)
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        asked(proxy, "PUT", "/k", b"x")
    assert Echo.puts == [("/k", b"x", proxy.url.removeprefix("http://"))]


@pytest.mark.parametrize("fault", [CUT, Fault(keep=5000)])
def test_a_cut_answer_is_known_to_be_incomplete(fault, proxy):
    proxy.rule = first(1, fault)
    with pytest.raises(http.client.IncompleteRead) as cut:
        asked(proxy)
    assert cut.value.partial == BODY[: fault.keep]


def test_a_short_answer_looks_complete(proxy):
    proxy.rule = first(1, Fault(short=5000))
    assert asked(proxy)[2] == BODY[:5000]


def test_answers_come_late_and_drip(proxy):
    proxy.rule = first(1, Fault(delay_s=0.3, bytes_per_s=100_000))
    started = time.monotonic()
    assert asked(proxy)[2] == BODY
    assert time.monotonic() - started > 0.5


def test_a_storm_is_drawn_from_its_seed(proxy):
    proxy.rule = storm(0.5, BUSY, seed=1)
    once = [asked(proxy)[0] for _ in range(20)]
    proxy.rule = storm(0.5, BUSY, seed=1)
    assert [asked(proxy)[0] for _ in range(20)] == once
    assert set(once) == {200, 503}
