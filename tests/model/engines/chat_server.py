"""A server of the OpenAI protocol for tests: a function decides how it answers and misbehaves."""

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
class ServerResponse:
    """What the server does with one request."""

    status: int = 200
    body: Any = None  # a string is sent as it is, anything else as JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_s: float = 0.0  # before the response
    drip_s: float = 0.0  # between two bytes
    cut: int | None = None  # the connection is reset after so many bytes of the body


@dataclass
class ReceivedRequest:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The text of all messages."""
        contents = [message["content"] for message in self.body["messages"]]
        parts = [
            part for content in contents for part in ([{"text": content}] if isinstance(content, str) else content)
        ]
        return "\n".join(part["text"] for part in parts if "text" in part)

    @property
    def image_urls(self) -> list[str]:
        parts = [part for message in self.body["messages"] for part in message["content"] if isinstance(part, dict)]
        return [part["image_url"]["url"] for part in parts if "image_url" in part]


Responder = Callable[[ReceivedRequest], ServerResponse]


def complete(text: str | None, finish: str = "stop", **message: Any) -> ServerResponse:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return ServerResponse(body={"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def refuse(status: int, message: str, **headers: str) -> ServerResponse:
    return ServerResponse(status, {"error": {"message": message}}, headers)


def echo_prompt(received: ReceivedRequest) -> ServerResponse:
    return complete(f"you said {received.text}")


class ChatServer:
    """Serves inside `with`. `received` holds the chat completions that were asked for, in order."""

    def __init__(self, respond: Responder = echo_prompt, models: Any = ("m",)):
        self.respond = respond
        self.models = models
        self.received: list[ReceivedRequest] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        server = self

        class Handler(_Handler):
            chat_server = server

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self.http_server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http_server.server_port}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.http_server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http_server.shutdown()
        self.http_server.server_close()

    def find_response(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> ServerResponse:
        if method == "GET":
            if isinstance(self.models, ServerResponse):
                return self.models
            return ServerResponse(
                body={"object": "list", "data": [{"id": name, "owned_by": "me"} for name in self.models]}
            )
        received = ReceivedRequest(path, headers, json.loads(body))
        with self.lock:
            self.received.append(received)
        return self.respond(received)


class _Handler(BaseHTTPRequestHandler):
    chat_server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.handle_request("GET")

    def do_POST(self) -> None:
        self.handle_request("POST")

    def handle_request(self, method: str) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_scripted(self.chat_server.find_response(method, self.path, dict(self.headers), body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send_scripted(self, response: ServerResponse) -> None:
        if response.hang_s and self.chat_server.closing.wait(response.hang_s):
            self.close_connection = True
            return
        body = response.body.encode() if isinstance(response.body, str) else json.dumps(response.body).encode()
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if response.cut is not None:
            self.wfile.write(body[: response.cut])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif response.drip_s:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(response.drip_s)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...
