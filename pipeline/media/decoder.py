"""A file -> its header and its resized pixels, by way of a process that may be killed.

The child is started when first needed, and again after it died. Whatever becomes of it, the caller gets
pixels or a DecodeError before `ends`, a time of `time.monotonic`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.intake.blob import Blob
from pipeline.media.kinds.base import Bounds, Probe
from pipeline.types import Size

MOST_CLIP_BYTES = 4 << 30
BYTES_PER_PIXEL = 24  # that decoding, converting and turning a picture may hold at once
LIBRARIES = 2 << 30  # what they may need beside it
GRACE_S = 5.0


class Decoder:
    def __init__(self, bounds: Bounds):
        self.bounds, self.threads = bounds, bounds.threads
        self.memory = LIBRARIES + MOST_CLIP_BYTES + BYTES_PER_PIXEL * max(bounds.image_pixels, bounds.frame_pixels)
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection[Any, Any] | None = None

    def open(self, blob: Blob, kind: str, *, moving: bool, ends: float) -> Probe:
        message = {
            "do": "open",
            "kind": kind,
            "path": str(blob.path or ""),
            "moving": moving,
            "bounds": asdict(self.bounds),
        }
        found = self._ask(message, ends=ends, data=blob.data)["probe"]
        sizes = tuple((width, height) for width, height in found["sizes"])
        return Probe(**{**found, "sizes": sizes, "times": tuple(found["times"])})

    def read(self, indices: Sequence[int], size: Size, *, ends: float) -> NDArray[np.uint8]:
        reply = self._ask({"do": "read", "indices": [*indices], "size": size}, ends=ends)
        pixels: NDArray[np.uint8] = reply["pixels"]
        return pixels

    def close(self) -> None:
        if self.connection and self.process:
            self.connection.close()
            self.process.kill()
            self.process.wait()
        self.connection = self.process = None

    def _ask(self, message: dict[str, Any], *, ends: float, data: bytes | None = None) -> Any:
        connection = self.connection or self._start()
        left = max(ends - time.monotonic(), 0.01)
        try:
            connection.send_bytes(json.dumps({**message, "deadline_s": left + GRACE_S}).encode())
            if data is not None:
                connection.send_bytes(data)
            if not connection.poll(max(ends - time.monotonic(), 0.01)):
                self.close()
                raise DecodeError("deadline", f"not decoded after {left:.0f} s; raise limits.deadline_s to wait longer")
            reply = json.loads(connection.recv_bytes())
            if "shape" in reply:
                reply["pixels"] = np.empty(reply["shape"], np.uint8)
                connection.recv_bytes_into(reply["pixels"].data.cast("B"))
        except (EOFError, OSError) as error:
            raise DecodeError("decoder_died", f"the decoder {self._fate()} on this file") from error
        if "error" in reply:
            raise DecodeError(*reply["error"])
        return reply

    def _start(self) -> Connection[Any, Any]:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                sys.executable,
                "-m",
                "pipeline.media.child",
                str(theirs.fileno()),
                str(self.memory),
                str(self.threads),
            ]
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self.threads)}
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self.connection = Connection(ours.detach())
        return self.connection

    def _fate(self) -> str:
        assert self.process
        code = self.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            return "was killed, most likely for want of memory,"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
