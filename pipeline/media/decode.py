"""A Blob -> Clips: the family says which frames and how large, a process of its own decodes them.

All decoding happens in one child process per worker, pictures too: what it costs, a copy of the
compressed bytes and of the resized pixels, is 1 to 3 % of the decoding, and for it no file can take
a worker down. A child that dies or outlives the deadline is one error row and a new child.
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
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, PromptError
from pipeline.intake.blob import Blob
from pipeline.job import Job
from pipeline.media.kinds.base import Bounds, Probe
from pipeline.media.sample import frames, image_ask, pages, times, video_ask, window
from pipeline.model.families.base import Family
from pipeline.types import Ask, Clip, Medium, Size

MOST_PAGES = 100  # of one document in one row
MOST_CLIP_BYTES = 4 << 30
BYTES_PER_PIXEL = 24  # that decoding, converting and turning a picture may hold at once
GRACE_S = 5.0


class Decoder:
    """The child process, started when first needed and again when it has died."""

    def __init__(self, bounds: Bounds):
        self.bounds, self.threads = bounds, bounds.threads
        self.memory = (2 << 30) + MOST_CLIP_BYTES + BYTES_PER_PIXEL * max(bounds.image_pixels, bounds.frame_pixels)
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


class Eyes:
    """Open once per worker. `look` turns what arrived into what the model will see."""

    def __init__(self, job: Job, family: Family):
        limits = job.limits
        bounds = Bounds(
            limits.image.pixels,
            limits.video.pixels_per_frame,
            limits.video.duration_s,
            threads=max(1, int(job.workers.prepare.cpus)),
            fast=job.media.fast_decode,
            tolerate=job.media.tolerate_truncated,
        )
        self.media, self.family, self.deadline_s = job.media, family, limits.deadline_s
        self.decoder = Decoder(bounds)

    def look(self, medium: Medium, blobs: Sequence[Blob], *, deadline_s: float | None = None) -> list[Clip]:
        """One clip; of a document one a page. Several blobs are the frames of one video."""
        ends = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)
        name = blobs[0].uri if blobs else "an empty list"
        try:
            if isinstance(medium.source, tuple):
                return [self._film(medium, blobs, ends)]
            return self._one(medium, blobs[0], ends)
        except (DecodeError, PromptError) as error:
            raise type(error)(error.kind, f"{name}: {error.message}") from error

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> Eyes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, medium: Medium, blob: Blob, ends: float) -> list[Clip]:
        kind, moving = choose(medium.kind, blob.kind)
        probe = self._open(blob, kind, moving, ends)
        if probe.kind == "video":
            return [self._video(probe, medium.ask, blob.uri, ends)]
        ask, clips = image_ask(self.media, medium.ask), []
        for page in pages(blob.pages, len(probe.sizes), MOST_PAGES):
            pixels = self.decoder.read([page], self.family.image_size(probe.sizes[page], ask), ends=ends)
            uri = blob.uri if len(probe.sizes) == 1 else f"{blob.uri}#page={page + 1}"
            clips.append(Clip("image", pixels, probe.sizes[page], uri))
        return clips

    def _open(self, blob: Blob, kind: str, moving: bool, ends: float) -> Probe:
        if blob.data == b"":
            raise DecodeError("empty", "the file is empty")
        return self.decoder.open(blob, kind, moving=moving, ends=ends)

    def _video(self, probe: Probe, wish: Ask, uri: str, ends: float) -> Clip:
        ask = video_ask(self.media, wish)
        indices = frames(self.family, probe, ask)
        size = self._video_size(probe.sizes[0], len(indices), ask)
        pixels = self.decoder.read(indices, size, ends=ends)
        fps = len(indices) / len(window(probe, ask)) * probe.fps
        return Clip("video", pixels, probe.sizes[0], uri, times(probe, indices), fps)

    def _video_size(self, source: Size, frames: int, ask: Ask) -> Size:
        width, height = self.family.video_size(source, frames, ask)
        if frames * width * height * 3 > MOST_CLIP_BYTES:
            raise DecodeError(
                "too_large", f"{frames} frames of {width}x{height} pixels; lower media.video.total_pixels"
            )
        return width, height

    def _film(self, medium: Medium, blobs: Sequence[Blob], ends: float) -> Clip:
        """Pictures as a video: all of them, unless there are more than may be; `fps` is their rate."""
        if not blobs:
            raise DecodeError("empty", "a video of no pictures")
        ask = video_ask(self.media, medium.ask)
        count, most, rate = len(blobs), ask.max_frames or len(blobs), ask.fps or 2.0
        few = replace(ask, frames=min(most, ask.frames or most))
        chosen = self.family.frames(count, rate, few) if count > (few.frames or count) else [*range(count)]
        size = source = (0, 0)
        pictures: list[NDArray[np.uint8]] = []
        for index in chosen:
            probe = self._open(blobs[index], "image", False, ends)
            if not pictures:
                source = probe.sizes[0]
                size = self._video_size(source, len(chosen), ask)
            pictures.append(self.decoder.read([0], size, ends=ends))
        seconds = tuple(index / rate for index in chosen)
        return Clip("video", np.concatenate(pictures), source, blobs[0].uri, seconds, rate * len(chosen) / count)


def choose(claim: Literal["image", "video"] | None, found: str | None) -> tuple[str, bool]:
    """The kind to open a file as, and whether as a moving picture.

    >>> choose(None, "pdf"), choose("video", "image"), choose("image", None)
    (('pdf', False), ('image', True), ('image', False))
    """
    if claim == "image" and found == "video":
        raise DecodeError("kind", "is a video, and the manifest calls it an image")
    if claim == "video" and found == "pdf":
        raise DecodeError("kind", "is a PDF, and the manifest calls it a video")
    if found == "video" or (claim == "video" and found is None):
        return "video", True
    return found or "image", claim == "video" and found == "image"
