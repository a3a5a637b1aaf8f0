"""vLLM's own OpenAI server over a checkpoint, on this machine, for as long as it is needed."""

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
    "dtype": "float32",
    "max-num-batched-tokens": 4096,
    "structured-outputs-config": '{"backend": "guidance", "disable_any_whitespace": true}',
}
FLAGS = ["--enforce-eager", "--trust-request-mm-kwargs"]


@contextmanager
def serving(weights: Path, log: Path, *, longest: int, slots: int) -> Iterator[str]:
    """Its address; it wants KEY."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {**OPTIONS, "model": weights, "port": port, "max-model-len": longest, "max-num-seqs": slots}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *FLAGS]
    command += [word for name, value in said.items() for word in (f"--{name}", str(value))]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        while not healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def healthy(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True
