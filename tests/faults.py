"""A server that answers -> the same server through a proxy that misbehaves on order.

    with Proxy("127.0.0.1:8333") as proxy:          # proxy.url goes where the server's URL went
        proxy.rule = first(3, Fault(status=503))    # the first three requests are answered 503 SlowDown
        proxy.rule = storm(0.2, BUSY, CUT, LOST)    # each fifth request meets one of these, drawn from a seed
        proxy.rule = only(first(1, LOST), method="PUT", path="/bucket/out/data/")
        proxy.rule = None                           # from now on all is well
        proxy.seen                                  # every request: method, path, range, fault, bytes of the answer

A rule is any function of a Seen that gives a Fault or None; it is asked once a request, under a lock. Works for any
HTTP/1.1 server, signed S3 requests too: the Host header is passed on as it came, and nothing in a request is touched.
Threads of this process; what runs elsewhere reaches it by TCP, so that whole runs on Ray can be sent through it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLICE = 1 << 16
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding")
Reply = tuple[int, str, list[tuple[str, str]], bytes]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Several fields together go wrong together."""

    delay_s: float = 0.0  # before anything is passed on
    status: int = 0  # answered in the server's place, which never hears of the request
    code: str = "SlowDown"  # of S3's error document that comes with `status`
    lost: bool = False  # passed on and done, but the connection is reset (TCP RST) instead of an answer
    keep: int | None = None  # so many bytes of the body, then the connection is closed
    short: int | None = None  # so many bytes of the body, declared as if they were all
    bytes_per_s: int = 0  # the body drips


BUSY, DOWN = Fault(status=503), Fault(status=500, code="InternalError")
EXPIRED = Fault(status=400, code="ExpiredToken")
CUT, LOST = Fault(keep=0), Fault(lost=True)


@dataclass(frozen=True)
class Seen:
    """One request, in the order of arrival. `sent`: bytes of the answer's body that went out."""

    number: int
    method: str
    path: str
    range: str = ""
    key: str = ""  # the access key it is signed with
    fault: Fault | None = None
    sent: int = 0


Rule = Callable[[Seen], Fault | None]


def first(count: int, fault: Fault) -> Rule:
    """The first `count` requests that ask."""
    left = iter(range(count))
    return lambda seen: fault if next(left, None) is not None else None


def storm(chance: float, *faults: Fault, seed: int = 0) -> Rule:
    """Each request with this chance, one of the faults."""
    draw = random.Random(seed)
    return lambda seen: draw.choice(faults) if draw.random() < chance else None


def only(rule: Rule, *, method: str = "", path: str = "") -> Rule:
    """Only requests of this method whose path begins so."""
    return lambda seen: rule(seen) if seen.method.startswith(method) and seen.path.startswith(path) else None


class Proxy:
    """Open while it is needed. `server` is host:port."""

    def __init__(self, server: str, rule: Rule | None = None):
        self.server, self.rule = server, rule
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.front = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.front.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.front.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.front.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.front.shutdown()
        self.front.server_close()

    def note(self, method: str, path: str, headers: Any) -> Seen:
        with self.lock:
            key = headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            seen = Seen(len(self.seen), method, path, headers.get("Range", ""), key)
            seen = replace(seen, fault=self.rule(seen) if self.rule else None)
            self.seen.append(seen)
            return seen

    def count(self, seen: Seen, sent: int) -> None:
        with self.lock:
            self.seen[seen.number] = replace(seen, sent=sent)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        if self.upstream:
            self.upstream.close()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # clients hang up when they like
            super().handle()

    def pass_on(self) -> None:
        body = self._body()
        seen = self.owner.note(self.command, self.path, self.headers)
        fault = seen.fault or Fault()
        time.sleep(fault.delay_s)
        reply = _refusal(fault) if fault.status else self._asked(body)
        if fault.lost or reply is None:
            return self._reset()
        self.owner.count(seen, self._answer(reply, fault))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _asked(self, body: bytes) -> Reply | None:
        """The server's answer, over a connection kept like the client's own; None if it gives none."""
        for _ in range(2):  # a connection that idled may have been closed by the server
            fresh = self.upstream is None
            link = self.upstream = self.upstream or http.client.HTTPConnection(self.owner.server, timeout=120)
            try:
                link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in (*HOP_BY_HOP, "content-length", "expect"):
                        link.putheader(name, value)
                if body or "Content-Length" in self.headers or self.command in ("PUT", "POST"):
                    link.putheader("Content-Length", str(len(body)))
                link.endheaders(body or None)
                answer = link.getresponse()
                return answer.status, answer.reason, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                link.close()
                self.upstream = None
                if fresh:
                    return None
        return None

    def _answer(self, reply: Reply, fault: Fault) -> int:
        status, reason, headers, body = reply
        self.send_response_only(status, reason)
        said = [(name, value) for name, value in headers if name.lower() not in (*HOP_BY_HOP, "content-length")]
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        if fault.short is not None and body:
            body = body[: fault.short]
            length = str(len(body))
        for name, value in [*said, *([] if status in (204, 304) else [("Content-Length", length)])]:
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else body
        out = body if fault.keep is None else body[: fault.keep]
        for start in range(0, len(out), fault.bytes_per_s // 10 or SLICE):
            self.wfile.write(out[start : start + (fault.bytes_per_s // 10 or SLICE)])
            time.sleep(0.1 if fault.bytes_per_s else 0)
        self.close_connection = self.close_connection or fault.keep is not None
        return len(out)

    def _reset(self) -> None:
        """As a balancer or a dying server does: the socket is closed under everybody's hands."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        pass


def _refusal(fault: Fault) -> Reply:
    text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>on order: {fault.code}</Message></Error>"
    headers = [("Content-Type", "application/xml"), ("x-amz-request-id", "0")]
    return fault.status, fault.code, headers, text.encode()
