"""The worker's side of the decoder's process: opens files and reads frames in a child that may be killed.

The child starts with the client, and again after it has died. The caller gets pixels or a DecodeError before the
deadline. The child is the process that strangers' files may take over: it gets no credentials, no home directory and a
sandbox.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, PipelineError
from pipeline.fetch.blob import Blob, ByteRanges
from pipeline.media.decoder_protocol import receive_message, send_message
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.sandbox import hide_process_memory
from pipeline.registry import MEDIA_KINDS
from pipeline.types import ClipKind, PixelRegion, Size

MAX_CLIP_BYTES = 2 << 30
BYTES_PER_PIXEL = 20  # that decoding, converting and turning a picture hold at once
LIBRARY_BYTES = 1 << 30  # for everything else that the libraries hold
START_TIMEOUT_S = 120.0  # imports from a slow disk
MAX_START_ATTEMPTS = 3  # a machine short of memory kills the decoder first
ALARM_GRACE_S = 2.0  # the kernel's alarm goes off later than our timeout
MALLOC_ENVIRONMENT = {  # keeps freed pages: new ones cost a third of the time
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
INHERITED_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # and no credentials


class DecoderClient:
    def __init__(self, limits: DecodeLimits, *, reads_pixels: bool = True):
        """Without `reads_pixels` only `open` and `ranges` work, and the process starts faster."""
        self.limits, self.reads_pixels = limits, reads_pixels
        max_pixels = max(limits.image_pixels, limits.frame_pixels)
        self.memory_bytes = LIBRARY_BYTES + MAX_CLIP_BYTES + BYTES_PER_PIXEL * max_pixels
        self.is_ready = False
        hide_process_memory()
        self._start_process()  # it imports its libraries while the worker fetches the first file

    def open(self, blob: Blob, kind: str, *, claimed_kind: ClipKind | None, deadline: float) -> Probe:
        message = {
            "do": "open",
            "kind": MEDIA_KINDS[kind],
            "claimed_kind": claimed_kind,
            "limits": asdict(replace(self.limits, holes=blob.range_loader is not None)),
        }
        with open_media_file(blob.path) as file:
            probe = self._call(message, deadline=deadline, data=blob.data or b"", file=file)[0]["probe"]
        sizes = tuple((width, height) for width, height in probe["sizes"])
        return Probe(**{**probe, "sizes": sizes, "times": tuple(probe["times"])})

    def read(
        self, indices: Sequence[int], size: Size, *, region: PixelRegion | None = None, deadline: float
    ) -> NDArray[np.uint8]:
        message = {"do": "read", "indices": [*indices], "size": size, "region": region}
        shape = len(indices), 3, size[1], size[0]
        _, pixels = self._call(message, deadline=deadline, pixel_bytes=math.prod(shape))
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        """The byte ranges of the open file that hold the frames of each batch."""
        batch_ranges = self._call({"do": "ranges", "batches": batches}, deadline=deadline)[0]["ranges"]
        if None in batch_ranges:
            raise DecodeError("holes", "does not say where its frames are")
        return [[(start, end) for start, end in ranges] for ranges in batch_ranges]

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _call(
        self,
        message: dict[str, Any],
        *,
        deadline: float,
        data: bytes = b"",
        file: FileIO | None = None,
        pixel_bytes: int = 0,
    ) -> tuple[dict[str, Any], memoryview]:
        """The reply may be a lie, but it has the right size and comes in time."""
        if message["do"] == "open":  # a new process has no file open, so other messages must fail
            self.wait_until_ready()
        left = max(deadline - time.monotonic(), 0.001)
        try:
            self.connection.settimeout(left)
            send_message(self.connection, {**message, "deadline_s": left + ALARM_GRACE_S}, data, file=file)
            reply, pixels = receive_message(
                self.connection, max_data_bytes=pixel_bytes, deadline=time.monotonic() + left
            )
            if "error" in reply:
                raise DecodeError(*reply["error"])
            if len(pixels) != pixel_bytes:
                raise ValueError(f"{len(pixels):,} bytes of pixels, not {pixel_bytes:,}")
        except TimeoutError as error:
            self.close()
            advice = "raise limits.deadline_s to wait longer"
            raise DecodeError("deadline", f"not decoded after {left:.0f} s; {advice}") from error
        except (EOFError, OSError) as error:
            raise DecodeError("decoder_died", f"the decoder {self._describe_exit()} on this file") from error
        except (ValueError, TypeError) as error:
            self.close()
            raise DecodeError("decoder_died", "the decoder was ended: its reply on this file is broken") from error
        return reply, pixels

    def _start_process(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = theirs.fileno(), self.memory_bytes, self.limits.threads, int(self.reads_pixels)
            arguments = [str(number) for number in numbers]
            environment = {
                name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ
            } | MALLOC_ENVIRONMENT
            environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.media.sandbox", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self.connection, self.is_ready = ours, False

    def wait_until_ready(self) -> None:
        """Call it before a file's deadline starts: a slow start is not the file's fault."""
        for attempts_left in reversed(range(MAX_START_ATTEMPTS)):
            if self.process.poll() is not None:
                self._start_process()
            if self.is_ready:
                return
            try:
                self.connection.settimeout(START_TIMEOUT_S)
                warn_of_missing_protection(*receive_message(self.connection)[0]["missing_protection"])
                self.is_ready = True
            except (EOFError, OSError) as error:
                timed_out = isinstance(error, TimeoutError)
                self.close()
                if timed_out or not attempts_left:
                    problem = "does not start" if timed_out else "exits as it starts"
                    raise PipelineError(
                        f"the decoder's process {problem} on this worker; see its output above"
                    ) from error

    def _describe_exit(self) -> str:
        code = self.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            return "was killed, most likely for lack of memory,"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"exited with code {code}"


def open_media_file(path: Path | None) -> AbstractContextManager[FileIO | None]:
    """The decoder's process may open no file by itself."""
    if path is None:
        return nullcontext()
    try:
        return FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise DecodeError("undecodable", f"cannot be opened: {error.strerror}") from error


@cache
def warn_of_missing_protection(*protections: str) -> None:
    """Once in a process."""
    if protections:
        line = f"vlbatch: this kernel does not keep the decoder from {' and '.join(protections)}; see REFERENCE.md"
        os.write(2, f"{line}\n".encode())
