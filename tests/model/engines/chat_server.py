"""A server that speaks the OpenAI protocol and follows a script: what it answers, and how it misbehaves."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Act:
    """What happens to one request."""

    status: int = 200
    body: Any = None  # a text is sent as it is, anything else as JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_s: float = 0.0  # before a word is said
    drip_s: float = 0.0  # between a byte and the next
    cut: int | None = None  # so many bytes of the body, then the connection is reset


@dataclass
class Heard:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """All that was said in words."""
        contents = [message["content"] for message in self.body["messages"]]
        parts = [part for each in contents for part in ([{"text": each}] if isinstance(each, str) else each)]
        return "\n".join(part["text"] for part in parts if "text" in part)

    @property
    def pictures(self) -> list[str]:
        parts = [part for message in self.body["messages"] for part in message["content"] if isinstance(part, dict)]
        return [part["image_url"]["url"] for part in parts if "image_url" in part]


Script = Callable[[Heard], Act]


def said(text: str | None, finish: str = "stop", **message: Any) -> Act:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Act(body={"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def wrong(status: int, message: str, **headers: str) -> Act:
    return Act(status, {"error": {"message": message}}, headers)


def echo(heard: Heard) -> Act:
    return said(f"you said {heard.text}")


class Talker:
    """Open while it is needed; `heard` has the chat completions in the order in which they came."""

    def __init__(self, script: Script = echo, models: Any = ("m",)):
        self.script = script
        self.models = models
        self.heard: list[Heard] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        talker = self

        class Handler(_Handler):
            owner = talker

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self.front = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.front.server_port}/v1"

    def __enter__(self) -> Talker:
        threading.Thread(target=self.front.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.front.shutdown()
        self.front.server_close()

    def act(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Act:
        if method == "GET":
            if isinstance(self.models, Act):
                return self.models
            return Act(body={"object": "list", "data": [{"id": name, "owned_by": "me"} for name in self.models]})
        heard = Heard(path, headers, json.loads(body))
        with self.lock:
            self.heard.append(heard)
        return self.script(heard)


class _Handler(BaseHTTPRequestHandler):
    owner: Talker
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def serve(self, method: str) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.play(self.owner.act(method, self.path, dict(self.headers), body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def play(self, act: Act) -> None:
        if act.hang_s and self.owner.closing.wait(act.hang_s):
            self.close_connection = True
            return
        body = act.body.encode() if isinstance(act.body, str) else json.dumps(act.body).encode()
        self.send_response(act.status)
        for name, value in act.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if act.cut is not None:
            self.wfile.write(body[: act.cut])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif act.drip_s:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(act.drip_s)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...
