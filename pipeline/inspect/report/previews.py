"""Makes small previews of media that fit into the page, so that it needs no network and no other file.

Media are fetched by the rules of the given job and decoded in the process that may be killed. A medium
that cannot be read again, such as a signed URL or bytes from a column, is an empty frame of the right size, so that
annotations still stand where they belong.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.command_text import tidy_path
from pipeline.errors import DecodeError, FetchError
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits
from pipeline.media.sample import find_frame_at, parse_pages
from pipeline.types import ClipKind, Size

MAX_IMAGE_SIDE, MAX_FRAME_SIDE = 1100, 320  # pixels of an image and of a video frame
MAX_FRAMES = 8
MEDIA_TIMEOUT_S = 60.0
ACCESS_ERROR_KINDS = ("root", "host", "address", "store")


@dataclass(frozen=True, slots=True)
class PreviewImage:
    uri: str  # a data: URI
    second: float | None = None


@dataclass(frozen=True, slots=True)
class MediaPreview:
    kind: str
    name: str
    size: Size  # of the original, whose pixels annotations are drawn in
    stills: tuple[PreviewImage, ...] = ()
    duration_s: float = 0.0  # of a video, up to the last frame that the model saw
    missing: str = ""  # why there is no preview


class PreviewLoader:
    def __init__(self, job: Job, *, max_image_side: int = MAX_IMAGE_SIDE, max_frames: int = MAX_FRAMES):
        self.max_image_side, self.max_frames = max_image_side, max_frames
        limits = job.limits
        decode_limits = DecodeLimits(
            limits.image.pixels, limits.video.pixels_per_frame, limits.video.duration_s, fast=True, tolerate=True
        )
        self.fetcher, self.decoder = Fetcher(job), DecoderClient(decode_limits)
        self.withheld_media = 0

    def load_preview(self, media_info: Mapping[str, Any]) -> MediaPreview:
        """Preview one entry of a row's `media` column."""
        kind, uri, times = media_info["kind"], media_info["uri"], media_info["times"] or []
        size = media_info["width"], media_info["height"]
        try:
            stills, missing = self._load_stills(kind, uri, size, times), ""
        except (FetchError, DecodeError) as error:
            stills, missing = (), f"{error.kind}: {error.message}"
            if error.kind in ACCESS_ERROR_KINDS:
                self.withheld_media += 1
                missing = "a report reads media only from places that --roots, --hosts and --stores name"
        return MediaPreview(
            kind, tidy_path(uri.removeprefix("file://")), size, stills, max(times, default=0.0), missing
        )

    def _load_stills(self, kind: str, uri: str, size: Size, times: Sequence[float]) -> tuple[PreviewImage, ...]:
        if uri.startswith(("data:", "(")):
            raise FetchError("inline", "its bytes stand in the manifest")
        deadline = time.monotonic() + MEDIA_TIMEOUT_S
        with self.fetcher.fetch(uri, deadline_s=MEDIA_TIMEOUT_S) as blob:
            clip_kind: ClipKind = "video" if kind == "video" else "image"
            probe = self.decoder.open(blob, blob.kind or clip_kind, claimed_kind=clip_kind, deadline=deadline)
            if kind != "video":
                page = parse_pages(blob.pages, len(probe.sizes), len(probe.sizes))[0]
                [pixels] = self.decoder.read([page], fit_size(size, self.max_image_side), deadline=deadline)
                return (PreviewImage(encode_webp(pixels)),)
            seconds = [times[index] for index in spread_indices(len(times), self.max_frames)]
            indices = [find_frame_at(probe, second) for second in seconds]
            frames = self.decoder.read(indices, fit_size(size, MAX_FRAME_SIDE), deadline=deadline)
            return tuple(
                PreviewImage(encode_webp(frame), second) for frame, second in zip(frames, seconds, strict=True)
            )

    def close(self) -> None:
        self.fetcher.close()
        self.decoder.close()


def spread_indices(count: int, wanted_count: int) -> list[int]:
    """Evenly spread, with the first one always among them."""
    shown = min(count, wanted_count)
    return [number * count // shown for number in range(shown)]


def fit_size(size: Size, max_side: int) -> Size:
    """
    >>> fit_size((4000, 3000), 1000), fit_size((30, 20), 1000)
    ((1000, 750), (30, 20))
    """
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode_webp(pixels: NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(sink, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
