"""Decodes the bytes of a medium into Clips. The family's rules say which frames and which size.

All decoding, also of pictures, happens in one child process per worker. Copying the compressed bytes there and the
resized pixels back costs 1 to 3 % of the decoding; in return no file can take a worker down. A file over which the
process dies twice, or which outlives its deadline, costs one error row and a new process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, PromptError
from pipeline.fetch.blob import Blob, RangeLoader
from pipeline.job.spec import Job
from pipeline.media.base import FrameDecoder, FrameRules
from pipeline.media.decoder_client import MAX_CLIP_BYTES, DecoderClient
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.region import get_shown_size, to_pixel_region
from pipeline.media.sample import (
    compute_span_fps,
    list_frame_times,
    merge_image_options,
    merge_video_options,
    parse_pages,
    select_span,
)
from pipeline.types import Clip, ClipKind, MediaOptions, MediaRef, PixelRegion, Size

EXTRA_S_PER_FRAME = 0.25  # for one frame of a long video, a second of full HD may have to be decoded
FRAMES_PER_BATCH = 32
MAX_PAGES_PER_ROW = 100


def build_decode_limits(job: Job) -> DecodeLimits:
    return DecodeLimits(
        job.limits.image.pixels,
        job.limits.video.pixels_per_frame,
        job.limits.video.duration_s,
        threads=max(1, int(job.workers.prepare.cpus)),
        fast=job.media.fast_decode,
        tolerate=job.media.tolerate_truncated,
    )


class ClipDecoder:
    """Opened once per worker."""

    def __init__(self, job: Job, frame_rules: FrameRules, decoder: FrameDecoder | None = None):
        self.media, self.frame_rules, self.deadline_s = job.media, frame_rules, job.limits.deadline_s
        self.limits = build_decode_limits(job)
        self.decoder = decoder or DecoderClient(self.limits)

    def decode(self, media_ref: MediaRef, blobs: Sequence[Blob], *, deadline: float | None = None) -> list[Clip]:
        """One clip, or one for each page of a document. Several blobs are the frames of one video."""
        deadline = time.monotonic() + self.deadline_s if deadline is None else deadline
        try:
            return self._decode_with_retry(media_ref, blobs, deadline)
        except (DecodeError, PromptError) as error:
            name = blobs[0].uri if blobs else "an empty list"
            raise type(error)(error.kind, f"{name}: {error.message}") from error

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> ClipDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode_with_retry(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> list[Clip]:
        """A decoder that died is tried once more: a machine short of memory kills decoders first, whatever the file."""
        deadline = self._wait_for_decoder(deadline)
        try:
            return self._decode_blobs(media_ref, blobs, deadline)
        except DecodeError as error:
            if error.kind != "decoder_died":
                raise
        deadline = self._wait_for_decoder(deadline)
        return self._decode_blobs(media_ref, blobs, deadline)

    def _wait_for_decoder(self, deadline: float) -> float:
        """The deadline, moved by the time that the process takes to start: no row is to blame for that."""
        started = time.monotonic()
        self.decoder.wait_until_ready()
        return deadline + time.monotonic() - started

    def _decode_blobs(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> list[Clip]:
        if isinstance(media_ref.source, tuple):
            return [self._decode_image_sequence(media_ref, blobs, deadline)]
        (blob,) = blobs
        probe = self._open_blob(blob, blob.kind or media_ref.kind or "image", media_ref.kind, deadline)
        if probe.kind == "video":
            return [self._decode_video(probe, media_ref, blob, deadline)]
        return self._decode_pages(probe, media_ref, blob, deadline)

    def _open_blob(self, blob: Blob, kind: str, claimed_kind: ClipKind | None, deadline: float) -> Probe:
        if blob.data == b"":
            raise DecodeError("empty", "the file is empty")
        return self.decoder.open(blob, kind, claimed_kind=claimed_kind, deadline=deadline)

    def _decode_pages(self, probe: Probe, media_ref: MediaRef, blob: Blob, deadline: float) -> list[Clip]:
        options, clips = merge_image_options(self.media, media_ref.options), []
        for page in parse_pages(blob.pages, len(probe.sizes), MAX_PAGES_PER_ROW):
            source_size = probe.sizes[page]
            if not all(source_size):
                raise DecodeError("page", f"page {page + 1} is broken; choose others with #page= at the end of the URI")
            self.limits.check_size(source_size, moving=False)
            region = to_pixel_region(media_ref.region, source_size)
            size = self.frame_rules.fit_image_size(get_shown_size(region, source_size), options)
            pixels = self.decoder.read([page], size, region=region, deadline=deadline)
            uri = blob.uri if len(probe.sizes) == 1 else f"{blob.uri}#page={page + 1}"
            clips.append(Clip("image", pixels, source_size, uri, region=region))
        return clips

    def _decode_video(self, probe: Probe, media_ref: MediaRef, blob: Blob, deadline: float) -> Clip:
        options, source_size = merge_video_options(self.media, media_ref.options), probe.sizes[0]
        span = select_span(probe, options)
        span_fps = compute_span_fps(probe, span)
        indices = self.frame_rules.select_frames(span, span_fps, options)
        region = to_pixel_region(media_ref.region, source_size)
        size = self._fit_video_size(get_shown_size(region, source_size), len(indices), options)
        deadline += EXTRA_S_PER_FRAME * len(indices)
        if blob.range_loader:
            pixels = self._decode_while_fetching(blob.range_loader, indices, size, region, deadline)
        else:
            pixels = self.decoder.read(indices, size, region=region, deadline=deadline)
        fps = len(indices) / len(span) * span_fps
        times = list_frame_times(probe, indices)
        return Clip("video", pixels, source_size, blob.uri, times, fps, region=region, is_truncated=probe.is_truncated)

    def _decode_while_fetching(
        self,
        range_loader: RangeLoader,
        indices: Sequence[int],
        size: Size,
        region: PixelRegion | None,
        deadline: float,
    ) -> NDArray[np.uint8]:
        """Decodes one batch of frames while the bytes of the next arrive."""
        batches = [indices[start : start + FRAMES_PER_BATCH] for start in range(0, len(indices), FRAMES_PER_BATCH)]
        futures = range_loader.load_ranges(self.decoder.ranges(batches, deadline=deadline))
        pixels = []
        for batch, arrived in zip(batches, futures, strict=True):
            try:
                arrived.result(max(deadline - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise DecodeError("deadline", "its frames are not here yet; raise limits.deadline_s") from error
            pixels.append(self.decoder.read(batch, size, region=region, deadline=deadline))
        return np.concatenate(pixels)

    def _fit_video_size(self, shown_size: Size, frame_count: int, options: MediaOptions) -> Size:
        width, height = self.frame_rules.fit_video_size(shown_size, frame_count, options)
        if frame_count * width * height * 3 > MAX_CLIP_BYTES:
            raise DecodeError(
                "too_large", f"{frame_count} frames of {width}x{height} pixels; lower media.video.total_pixels"
            )
        return width, height

    def _decode_image_sequence(self, media_ref: MediaRef, blobs: Sequence[Blob], deadline: float) -> Clip:
        """Pictures as a video with the rate `fps`. All are shown, unless there are more than `max_frames`."""
        if not blobs:
            raise DecodeError("empty", "a video of no pictures")
        options = merge_video_options(self.media, media_ref.options)
        count, rate = len(blobs), options.fps or 2.0
        indices = self._select_pictures(count, rate, options)
        source_size, region, size = (0, 0), None, (0, 0)
        frames: list[NDArray[np.uint8]] = []
        for index in indices:
            probe = self._open_blob(blobs[index], "image", "image", deadline)
            if not frames:
                source_size = probe.sizes[0]
                region = to_pixel_region(media_ref.region, source_size)
                size = self._fit_video_size(get_shown_size(region, source_size), len(indices), options)
            frame_region = to_pixel_region(media_ref.region, probe.sizes[0])
            frames.append(self.decoder.read([0], size, region=frame_region, deadline=deadline))
        times = tuple(index / rate for index in indices)
        fps = rate * len(indices) / count
        return Clip("video", np.concatenate(frames), source_size, blobs[0].uri, times, fps, region=region)

    def _select_pictures(self, count: int, rate: float, options: MediaOptions) -> list[int]:
        max_frames = options.max_frames or count
        wanted = min(max_frames, options.frames or max_frames)
        if count <= wanted:
            return [*range(count)]
        return self.frame_rules.select_frames(range(count), rate, replace(options, frames=wanted))
