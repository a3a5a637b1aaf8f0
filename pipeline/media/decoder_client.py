"""A file -> its header and its resized pixels, by way of a process that may be killed.

The child is started at once, and again after it died. Whatever becomes of it, the caller gets
pixels or a DecodeError before `ends`, a time of `time.monotonic`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, PipelineError
from pipeline.fetch.blob import Blob, ByteRanges
from pipeline.media.decoder_protocol import receive_message, send_message
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.types import Size

MAX_CLIP_BYTES = 2 << 30
BYTES_PER_PIXEL = 20  # that decoding, converting and turning a picture may hold at once
LIBRARY_BYTES = 1 << 30  # what they may need beside it
START_TIMEOUT_S = 120.0  # for imports, from a slow disk
MAX_START_ATTEMPTS = 3  # a machine short of memory ends it first
ALARM_GRACE_S = 2.0  # by which the kernel's alarm is later than ours
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}  # keep pages: new ones cost a third of the time
INHERITED_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")  # and no credentials


class DecoderClient:
    def __init__(self, limits: DecodeLimits):
        self.limits = limits
        self.memory_bytes = (
            LIBRARY_BYTES + MAX_CLIP_BYTES + BYTES_PER_PIXEL * max(limits.image_pixels, limits.frame_pixels)
        )
        self.is_ready = False
        self._start_process()  # its imports go on while the worker fetches its first file

    def open(self, blob: Blob, kind: str, *, moving: bool, deadline: float) -> Probe:
        message = {
            "do": "open",
            "kind": kind,
            "path": str(blob.path or ""),
            "moving": moving,
            "bounds": asdict(replace(self.limits, holes=blob.range_loader is not None)),
        }
        found = self._call(message, deadline=deadline, data=blob.data or b"")[0]["probe"]
        sizes = tuple((width, height) for width, height in found["sizes"])
        return Probe(**{**found, "sizes": sizes, "times": tuple(found["times"])})

    def read(self, indices: Sequence[int], size: Size, *, deadline: float) -> NDArray[np.uint8]:
        reply, pixels = self._call({"do": "read", "indices": [*indices], "size": size}, deadline=deadline)
        return np.frombuffer(pixels, np.uint8).reshape(reply["shape"])

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        """Which bytes of the file that is open hold the frames of each batch."""
        found = self._call({"do": "ranges", "batches": batches}, deadline=deadline)[0]["ranges"]
        if None in found:
            raise DecodeError("holes", "does not say where its frames are")
        return [[(start, end) for start, end in ranges] for ranges in found]

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _call(
        self, message: dict[str, Any], *, deadline: float, data: bytes = b""
    ) -> tuple[dict[str, Any], memoryview]:
        if message["do"] == "open":  # whoever comes later has nothing open
            self.wait_until_ready()
        left = max(deadline - time.monotonic(), 0.001)
        try:
            self.connection.settimeout(left)
            send_message(self.connection, {**message, "deadline_s": left + ALARM_GRACE_S}, data)
            reply, pixels = receive_message(self.connection)
        except TimeoutError as error:
            self.close()
            late = f"not decoded after {left:.0f} s; raise limits.deadline_s to wait longer"
            raise DecodeError("deadline", late) from error
        except (EOFError, OSError) as error:
            raise DecodeError("decoder_died", f"the decoder {self._describe_exit()} on this file") from error
        if "error" in reply:
            raise DecodeError(*reply["error"])
        return reply, pixels

    def _start_process(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [str(number) for number in (theirs.fileno(), self.memory_bytes, self.limits.threads)]
            environment = {
                name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ
            } | MALLOC_ENVIRONMENT
            environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.media.decoder_process", *numbers],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self.connection, self.is_ready = ours, False

    def wait_until_ready(self) -> None:
        """No file is to blame for a decoder that is slow to start or cannot: ask this before its time counts."""
        for left in reversed(range(MAX_START_ATTEMPTS)):
            if self.process.poll() is not None:
                self._start_process()
            if self.is_ready:
                return
            try:
                self.connection.settimeout(START_TIMEOUT_S)
                receive_message(self.connection)
                self.is_ready = True
            except (EOFError, OSError) as error:
                late = isinstance(error, TimeoutError)
                self.close()
                if late or not left:
                    what = "does not start" if late else "ends as it starts"
                    raise PipelineError(
                        f"the decoder's process {what} on this worker; see what it wrote above this"
                    ) from error

    def _describe_exit(self) -> str:
        code = self.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            return "was killed, most likely for want of memory,"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
