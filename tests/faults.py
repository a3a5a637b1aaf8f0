"""A proxy that injects faults between a client and a server.

    with Proxy("127.0.0.1:8333") as proxy:          # use proxy.url instead of the server's URL
        proxy.rule = first(3, Fault(status=503))    # the first three requests are answered with 503 SlowDown
        proxy.rule = storm(0.2, BUSY, CUT, LOST)    # every fifth request, at random, meets one of these faults
        proxy.rule = only(first(1, LOST), method="PUT", path="/bucket/out/data/")
        proxy.rule = None                           # from now on, no faults
        proxy.seen                                  # every request: method, path, range, fault, bytes of the response

A rule is any function from a SeenRequest to a Fault or None; it is called once per request, under a lock. The proxy
works for any HTTP/1.1 server and for signed S3 requests: it passes requests on unchanged, with their Host header. It
runs in threads of this process and listens on TCP, so that runs on Ray can be sent through it.
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
    """What goes wrong with one request. Several fields may be combined."""

    delay_s: float = 0.0  # before the request is passed on
    status: int = 0  # answered by the proxy; the server never sees the request
    code: str = "SlowDown"  # of S3's error document that comes with `status`
    lost: bool = False  # the server does the work, but the connection is reset (TCP RST) instead of a response
    keep: int | None = None  # bytes of the body before the connection is closed
    short: int | None = None  # bytes of the body, declared as its whole length
    bytes_per_s: int = 0  # speed of the body; 0: unlimited
    drop: str = ""  # a header of the request that is not passed on


BUSY, DOWN = Fault(status=503), Fault(status=500, code="InternalError")
EXPIRED = Fault(status=400, code="ExpiredToken")
CUT, LOST = Fault(keep=0), Fault(lost=True)


@dataclass(frozen=True)
class SeenRequest:
    """One request, numbered in order of arrival."""

    number: int
    method: str
    path: str
    range: str = ""
    key: str = ""  # the access key it is signed with
    fault: Fault | None = None
    sent: int = 0  # bytes of the response body


Rule = Callable[[SeenRequest], Fault | None]


def first(count: int, fault: Fault) -> Rule:
    """A fault for the first `count` requests."""
    left = iter(range(count))
    return lambda seen: fault if next(left, None) is not None else None


def storm(chance: float, *faults: Fault, seed: int = 0) -> Rule:
    """One of the faults at random, with this probability."""
    draw = random.Random(seed)
    return lambda seen: draw.choice(faults) if draw.random() < chance else None


def only(rule: Rule, *, method: str = "", path: str = "") -> Rule:
    """A rule for requests with this method and a path that starts with this one."""
    return lambda seen: rule(seen) if seen.method.startswith(method) and seen.path.startswith(path) else None


class Proxy:
    """A context manager. `server` is host:port."""

    def __init__(self, server: str, rule: Rule | None = None):
        self.server, self.rule = server, rule
        self.seen: list[SeenRequest] = []
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

    def note(self, method: str, path: str, headers: Any) -> SeenRequest:
        with self.lock:
            key = headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            seen = SeenRequest(len(self.seen), method, path, headers.get("Range", ""), key)
            seen = replace(seen, fault=self.rule(seen) if self.rule else None)
            self.seen.append(seen)
            return seen

    def count(self, seen: SeenRequest, sent: int) -> None:
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
        with contextlib.suppress(OSError):  # clients may disconnect at any time
            super().handle()

    def pass_on(self) -> None:
        body = self._read_body()
        seen = self.owner.note(self.command, self.path, self.headers)
        fault = seen.fault or Fault()
        time.sleep(fault.delay_s)
        del self.headers[fault.drop]
        reply = _build_error_response(fault) if fault.status else self._forward(body)
        if fault.lost or reply is None:
            return self._reset()
        self.owner.count(seen, self._send_response(reply, fault))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = pass_on

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> Reply | None:
        """The server's response; None if there is none. Keeps one connection per client connection."""
        for _ in range(2):  # the server may have closed an idle connection
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

    def _send_response(self, reply: Reply, fault: Fault) -> int:
        status, reason, headers, body = reply
        self.send_response_only(status, reason)
        passed_headers = [
            (name, value) for name, value in headers if name.lower() not in (*HOP_BY_HOP, "content-length")
        ]
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        if fault.short is not None and body:
            body = body[: fault.short]
            length = str(len(body))
        for name, value in [*passed_headers, *([] if status in (204, 304) else [("Content-Length", length)])]:
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
        """Close the socket with a TCP reset, as a load balancer or a dying server does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        pass


def _build_error_response(fault: Fault) -> Reply:
    text = (
        f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected fault: {fault.code}</Message></Error>"
    )
    headers = [("Content-Type", "application/xml"), ("x-amz-request-id", "0")]
    return fault.status, fault.code, headers, text.encode()
