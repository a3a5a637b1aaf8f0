"""Runs vLLM's own OpenAI server on this machine for a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "sesame"
OPTIONS = {
    "host": "127.0.0.1",
    "api-key": KEY,
    "served-model-name": "tiny",
    "max-num-batched-tokens": 4096,
    "structured-outputs-config": '{"backend": "guidance", "disable_any_whitespace": true}',
}
FLAGS = ["--enforce-eager", "--trust-request-mm-kwargs"]


@contextmanager
def serve_with_vllm(
    weights: Path, log: Path, *, max_model_len: int, slots: int, dtype: str = "float32"
) -> Iterator[str]:
    """The URL of the server, which expects the API key KEY."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    options = {**OPTIONS, "model": weights, "port": port, "max-model-len": max_model_len, "max-num-seqs": slots}
    options["dtype"] = dtype
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *FLAGS]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with log.open("wb") as log_file:
        process = subprocess.Popen(command, stdout=log_file, stderr=log_file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_healthy(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True
