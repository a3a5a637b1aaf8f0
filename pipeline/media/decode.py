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
from pipeline.fetch.blob import Blob, RangeLoader
from pipeline.job.spec import Job
from pipeline.media.decoder_client import MAX_CLIP_BYTES, DecoderClient
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.sample import (
    compute_span_fps,
    list_frame_times,
    merge_image_options,
    merge_video_options,
    parse_pages,
    select_span,
)
from pipeline.model.families.base import Family
from pipeline.types import Clip, MediaOptions, MediaRef, Size

EXTRA_S_PER_FRAME = (
    0.25  # that a frame may take beyond the row's time: of a long video, a second of full HD is decoded for each
)
FRAMES_PER_BATCH = 32  # frames
MAX_PAGES_PER_ROW = 100  # of one document in one row


class ClipDecoder:
    """Open once per worker. `look` turns what arrived into what the model will see."""

    def __init__(self, job: Job, family: Family, decoder_class: type[DecoderClient] = DecoderClient):
        limits = job.limits
        bounds = DecodeLimits(
            limits.image.pixels,
            limits.video.pixels_per_frame,
            limits.video.duration_s,
            threads=max(1, int(job.workers.prepare.cpus)),
            fast=job.media.fast_decode,
            tolerate=job.media.tolerate_truncated,
        )
        self.media, self.family, self.deadline_s = job.media, family, limits.deadline_s
        self.decoder = decoder_class(bounds)

    def decode(self, media_ref: MediaRef, blobs: Sequence[Blob], *, deadline_s: float | None = None) -> list[Clip]:
        """One clip; of a document one a page. Several blobs are the frames of one video."""
        self.decoder.wait_until_ready()
        ends = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)
        name = blobs[0].uri if blobs else "an empty list"
        try:
            return self._decode_with_retry(media_ref, blobs, ends)
        except (DecodeError, PromptError) as error:
            raise type(error)(error.kind, f"{name}: {error.message}") from error

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> ClipDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode_with_retry(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> list[Clip]:
        """Where a decoder died it may have been another's fault: a machine short of memory ends decoders first."""
        try:
            return self._decode_blobs(media_ref, blobs, deadline)
        except DecodeError as error:
            if error.kind != "decoder_died":
                raise
        self.decoder.wait_until_ready()
        return self._decode_blobs(media_ref, blobs, deadline)

    def _decode_blobs(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> list[Clip]:
        if isinstance(media_ref.source, tuple):
            return [self._decode_image_sequence(media_ref, blobs, deadline)]
        return self._decode_blob(media_ref, blobs[0], deadline)

    def _decode_blob(self, media_ref: MediaRef, blob: Blob, deadline: float) -> list[Clip]:
        kind, moving = resolve_kind(media_ref.kind, blob.kind)
        probe = self._open_blob(blob, kind, moving, deadline)
        if probe.kind == "video":
            return [self._decode_video(probe, media_ref.options, blob, deadline)]
        ask, clips = merge_image_options(self.media, media_ref.options), []
        for page in parse_pages(blob.pages, len(probe.sizes), MAX_PAGES_PER_ROW):
            pixels = self.decoder.read([page], self.family.fit_image_size(probe.sizes[page], ask), deadline=deadline)
            uri = blob.uri if len(probe.sizes) == 1 else f"{blob.uri}#page={page + 1}"
            clips.append(Clip("image", pixels, probe.sizes[page], uri))
        return clips

    def _open_blob(self, blob: Blob, kind: str, moving: bool, deadline: float) -> Probe:
        if blob.data == b"":
            raise DecodeError("empty", "the file is empty")
        return self.decoder.open(blob, kind, moving=moving, deadline=deadline)

    def _decode_video(self, probe: Probe, requested_options: MediaOptions, blob: Blob, deadline: float) -> Clip:
        ask = merge_video_options(self.media, requested_options)
        span = select_span(probe, ask)
        indices = self.family.select_frames(span, compute_span_fps(probe, span), ask)
        size = self._compute_video_size(probe.sizes[0], len(indices), ask)
        deadline += EXTRA_S_PER_FRAME * len(indices)
        if blob.range_loader:
            pixels = self._decode_while_fetching(blob.range_loader, indices, size, deadline)
        else:
            pixels = self.decoder.read(indices, size, deadline=deadline)
        fps = len(indices) / len(span) * compute_span_fps(probe, span)
        return Clip("video", pixels, probe.sizes[0], blob.uri, list_frame_times(probe, indices), fps)

    def _decode_while_fetching(
        self, holes: RangeLoader, indices: Sequence[int], size: Size, deadline: float
    ) -> NDArray[np.uint8]:
        """Some frames are decoded while the bytes of the next are on their way."""
        batches = [indices[start : start + FRAMES_PER_BATCH] for start in range(0, len(indices), FRAMES_PER_BATCH)]
        pixels = []
        for batch, arrived in zip(
            batches, holes.load_ranges(self.decoder.ranges(batches, deadline=deadline)), strict=True
        ):
            try:
                arrived.result(max(deadline - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise DecodeError("deadline", "its frames are not here yet; raise limits.deadline_s") from error
            pixels.append(self.decoder.read(batch, size, deadline=deadline))
        return np.concatenate(pixels)

    def _compute_video_size(self, source_size: Size, frame_count: int, options: MediaOptions) -> Size:
        width, height = self.family.fit_video_size(source_size, frame_count, options)
        if frame_count * width * height * 3 > MAX_CLIP_BYTES:
            raise DecodeError(
                "too_large", f"{frame_count} frames of {width}x{height} pixels; lower media.video.total_pixels"
            )
        return width, height

    def _decode_image_sequence(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> Clip:
        """Pictures as a video: all of them, unless there are more than may be; `fps` is their rate."""
        if not blobs:
            raise DecodeError("empty", "a video of no pictures")
        ask = merge_video_options(self.media, media_ref.options)
        count, most, rate = len(blobs), ask.max_frames or len(blobs), ask.fps or 2.0
        few = replace(ask, frames=min(most, ask.frames or most))
        chosen = (
            self.family.select_frames(range(count), rate, few) if count > (few.frames or count) else [*range(count)]
        )
        size = source = (0, 0)
        pictures: list[NDArray[np.uint8]] = []
        for index in chosen:
            probe = self._open_blob(blobs[index], "image", False, deadline)
            if not pictures:
                source = probe.sizes[0]
                size = self._compute_video_size(source, len(chosen), ask)
            pictures.append(self.decoder.read([0], size, deadline=deadline))
        seconds = tuple(index / rate for index in chosen)
        return Clip("video", np.concatenate(pictures), source, blobs[0].uri, seconds, rate * len(chosen) / count)


def resolve_kind(claimed_kind: Literal["image", "video"] | None, detected_kind: str | None) -> tuple[str, bool]:
    """The kind to open a file as, and whether as a moving picture.

    >>> choose(None, "pdf"), choose("video", "image"), choose("image", None)
    (('pdf', False), ('image', True), ('image', False))
    """
    if claimed_kind == "image" and detected_kind == "video":
        raise DecodeError("kind", "is a video, and the manifest calls it an image")
    if claimed_kind == "video" and detected_kind == "pdf":
        raise DecodeError("kind", "is a PDF, and the manifest calls it a video")
    if detected_kind == "video" or (claimed_kind == "video" and detected_kind is None):
        return "video", True
    return detected_kind or "image", claimed_kind == "video" and detected_kind == "image"
