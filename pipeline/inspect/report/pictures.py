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
from pipeline.media.decode import choose
from pipeline.media.decoder_client import Decoder
from pipeline.media.kinds.base import Bounds, Probe
from pipeline.media.sample import pages
from pipeline.types import Size

LONGEST_SIDE, FRAME_SIDE = 1100, 320  # pixels of a picture, of a frame of a video
FRAMES = 8
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Still:
    uri: str  # data:
    second: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One medium on the page. `size` is the original's, in which marks are drawn."""

    kind: str
    name: str
    size: Size
    stills: tuple[Still, ...] = ()
    seconds: float = 0.0  # a video's length, as far as it was looked at
    missing: str = ""  # why there is nothing to see


class Album:
    """Open once for a report."""

    def __init__(self, job: Job):
        limits = job.limits
        bounds = Bounds(
            limits.image.pixels, limits.video.pixels_per_frame, limits.video.duration_s, fast=True, tolerate=True
        )
        self.fetcher, self.decoder = Fetcher(job), Decoder(bounds)

    def picture(self, seen: Mapping[str, Any]) -> Picture:
        """`seen` is one entry of a row's `media`."""
        size, times = (seen["width"], seen["height"]), seen["times"] or []
        seconds = max(times, default=0.0)
        try:
            stills, missing = self.stills(seen["kind"], seen["uri"], size, times), ""
        except (FetchError, DecodeError) as error:
            stills, missing = (), f"{error.kind}: {error.message}"
        return Picture(seen["kind"], seen["uri"].removeprefix("file://"), size, stills, seconds, missing)

    def stills(self, kind: str, uri: str, size: Size, times: Sequence[float]) -> tuple[Still, ...]:
        if uri.startswith(("data:", "(")):
            raise FetchError("inline", "its bytes stand in the manifest")
        ends = time.monotonic() + DEADLINE_S
        with self.fetcher.fetch(uri, deadline_s=DEADLINE_S) as blob:
            form, moving = choose("video" if kind == "video" else None, blob.kind)
            probe = self.decoder.open(blob, form, moving=moving, ends=ends)
            if kind != "video":
                page = pages(blob.pages, len(probe.sizes), len(probe.sizes))[0]
                return (Still(encoded(self.decoder.read([page], fitted(size, LONGEST_SIDE), ends=ends)[0])),)
            chosen = [times[at * len(times) // min(FRAMES, len(times))] for at in range(min(FRAMES, len(times)))]
            places = [nearest(probe, moment) for moment in chosen]
            pixels = self.decoder.read(places, fitted(size, FRAME_SIDE), ends=ends)
            return tuple(Still(encoded(frame), moment) for frame, moment in zip(pixels, chosen, strict=True))

    def close(self) -> None:
        self.fetcher.close()
        self.decoder.close()


def nearest(probe: Probe, moment: float) -> int:
    """The frame shown at a moment."""
    place = bisect_left(probe.times, moment - 1e-6) if probe.times else round(moment * probe.fps)
    return min(max(place, 0), probe.count - 1)


def fitted(size: Size, longest: int) -> Size:
    """
    >>> fitted((4000, 3000), 1000), fitted((30, 20), 1000)
    ((1000, 750), (30, 20))
    """
    shrink = min(1.0, longest / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def encoded(pixels: NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(sink, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
