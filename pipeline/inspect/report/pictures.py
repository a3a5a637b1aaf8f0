"""What a row looked at -> small pictures inside the page, so that it needs no network and no file beside it.

Media are fetched by the rules of the job that asked about them and decoded in the process that may be killed. What
cannot be had any more, a signed URL or bytes from a column, is an empty frame of the right size: the marks on it are
still where they belong.
"""

from __future__ import annotations

import base64
import io
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DecodeError, FetchError
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.sample import parse_pages
from pipeline.types import ClipKind, Size

MAX_IMAGE_SIDE, MAX_FRAME_SIDE = 1100, 320  # pixels of a picture, of a frame of a video
MAX_FRAMES = 8
MEDIA_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PreviewImage:
    uri: str  # data:
    second: float | None = None


@dataclass(frozen=True, slots=True)
class MediaPreview:
    """One medium on the page. `size` is the original's, in which marks are drawn."""

    kind: str
    name: str
    size: Size
    stills: tuple[PreviewImage, ...] = ()
    duration_s: float = 0.0  # a video's length, as far as it was looked at
    missing: str = ""  # why there is nothing to see


class PreviewLoader:
    """Open once for a report."""

    def __init__(self, job: Job):
        limits = job.limits
        bounds = DecodeLimits(
            limits.image.pixels, limits.video.pixels_per_frame, limits.video.duration_s, fast=True, tolerate=True
        )
        self.fetcher, self.decoder = Fetcher(job), DecoderClient(bounds)

    def load_preview(self, media_info: Mapping[str, Any]) -> MediaPreview:
        """`seen` is one entry of a row's `media`."""
        size, times = (media_info["width"], media_info["height"]), media_info["times"] or []
        seconds = max(times, default=0.0)
        try:
            stills, missing = self.load_images(media_info["kind"], media_info["uri"], size, times), ""
        except (FetchError, DecodeError) as error:
            stills, missing = (), f"{error.kind}: {error.message}"
        return MediaPreview(
            media_info["kind"], media_info["uri"].removeprefix("file://"), size, stills, seconds, missing
        )

    def load_images(self, kind: str, uri: str, size: Size, times: Sequence[float]) -> tuple[PreviewImage, ...]:
        if uri.startswith(("data:", "(")):
            raise FetchError("inline", "its bytes stand in the manifest")
        ends = time.monotonic() + MEDIA_TIMEOUT_S
        with self.fetcher.fetch(uri, deadline_s=MEDIA_TIMEOUT_S) as blob:
            claimed_kind: ClipKind = "video" if kind == "video" else "image"
            probe = self.decoder.open(blob, blob.kind or claimed_kind, claimed_kind=claimed_kind, deadline=ends)
            if kind != "video":
                page = parse_pages(blob.pages, len(probe.sizes), len(probe.sizes))[0]
                return (
                    PreviewImage(
                        encode_webp(self.decoder.read([page], fit_size(size, MAX_IMAGE_SIDE), deadline=ends)[0])
                    ),
                )
            chosen = [
                times[at * len(times) // min(MAX_FRAMES, len(times))] for at in range(min(MAX_FRAMES, len(times)))
            ]
            places = [find_nearest_frame(probe, moment) for moment in chosen]
            pixels = self.decoder.read(places, fit_size(size, MAX_FRAME_SIDE), deadline=ends)
            return tuple(PreviewImage(encode_webp(frame), moment) for frame, moment in zip(pixels, chosen, strict=True))

    def close(self) -> None:
        self.fetcher.close()
        self.decoder.close()


def find_nearest_frame(probe: Probe, moment: float) -> int:
    """The frame shown at a moment."""
    place = bisect_left(probe.times, moment - 1e-6) if probe.times else round(moment * probe.fps)
    return min(max(place, 0), probe.count - 1)


def fit_size(size: Size, max_side: int) -> Size:
    """
    >>> fitted((4000, 3000), 1000), fitted((30, 20), 1000)
    ((1000, 750), (30, 20))
    """
    shrink = min(1.0, max_side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def encode_webp(pixels: NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(sink, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
