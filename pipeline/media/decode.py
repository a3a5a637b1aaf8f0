"""A Blob -> Clips: the family says which frames and how large, a process of its own decodes them.

All decoding happens in one child process per worker, pictures too: what it costs, a copy of the
compressed bytes and of the resized pixels, is 1 to 3 % of the decoding, and for it no file can take
a worker down. A child that dies over a file twice, or outlives the deadline, is one error row and a new child.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, PromptError
from pipeline.fetch.blob import Blob, Holes
from pipeline.job.spec import Job
from pipeline.media.decoder_client import MOST_CLIP_BYTES, Decoder
from pipeline.media.kinds.base import Bounds, Probe
from pipeline.media.sample import image_ask, pages, part, rate, times, video_ask
from pipeline.model.families.base import Family
from pipeline.types import Ask, Clip, Medium, Size

FRAME_S = 0.25  # that a frame may take beyond the row's time: of a long video, a second of full HD is decoded for each
BATCH = 32  # frames
MOST_PAGES = 100  # of one document in one row


class Eyes:
    """Open once per worker. `look` turns what arrived into what the model will see."""

    def __init__(self, job: Job, family: Family, decoder: type[Decoder] = Decoder):
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
        self.decoder = decoder(bounds)

    def look(self, medium: Medium, blobs: Sequence[Blob], *, deadline_s: float | None = None) -> list[Clip]:
        """One clip; of a document one a page. Several blobs are the frames of one video."""
        self.decoder.await_start()
        ends = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)
        name = blobs[0].uri if blobs else "an empty list"
        try:
            return self._twice(medium, blobs, ends)
        except (DecodeError, PromptError) as error:
            raise type(error)(error.kind, f"{name}: {error.message}") from error

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> Eyes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _twice(self, medium: Medium, blobs: Sequence[Blob], ends: float) -> list[Clip]:
        """Where a decoder died it may have been another's fault: a machine short of memory ends decoders first."""
        try:
            return self._clips(medium, blobs, ends)
        except DecodeError as error:
            if error.kind != "decoder_died":
                raise
        self.decoder.await_start()
        return self._clips(medium, blobs, ends)

    def _clips(self, medium: Medium, blobs: Sequence[Blob], ends: float) -> list[Clip]:
        if isinstance(medium.source, tuple):
            return [self._film(medium, blobs, ends)]
        return self._one(medium, blobs[0], ends)

    def _one(self, medium: Medium, blob: Blob, ends: float) -> list[Clip]:
        kind, moving = choose(medium.kind, blob.kind)
        probe = self._open(blob, kind, moving, ends)
        if probe.kind == "video":
            return [self._video(probe, medium.ask, blob, ends)]
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

    def _video(self, probe: Probe, wish: Ask, blob: Blob, ends: float) -> Clip:
        ask = video_ask(self.media, wish)
        span = part(probe, ask)
        indices = self.family.frames(span, rate(probe, span), ask)
        size = self._video_size(probe.sizes[0], len(indices), ask)
        ends += FRAME_S * len(indices)
        if blob.holes:
            pixels = self._with_holes(blob.holes, indices, size, ends)
        else:
            pixels = self.decoder.read(indices, size, ends=ends)
        fps = len(indices) / len(span) * rate(probe, span)
        return Clip("video", pixels, probe.sizes[0], blob.uri, times(probe, indices), fps)

    def _with_holes(self, holes: Holes, indices: Sequence[int], size: Size, ends: float) -> NDArray[np.uint8]:
        """Some frames are decoded while the bytes of the next are on their way."""
        batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
        pixels = []
        for batch, arrived in zip(batches, holes.fill(self.decoder.ranges(batches, ends=ends)), strict=True):
            try:
                arrived.result(max(ends - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise DecodeError("deadline", "its frames are not here yet; raise limits.deadline_s") from error
            pixels.append(self.decoder.read(batch, size, ends=ends))
        return np.concatenate(pixels)

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
        chosen = self.family.frames(range(count), rate, few) if count > (few.frames or count) else [*range(count)]
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
