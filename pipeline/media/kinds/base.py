"""The seam for a kind of media: what the decoder's process opens a file with, registered in MEDIA_KINDS.

A kind is built as `SomeKind(source, limits, claimed_kind=...)`. It reads the header then, and refuses what is too
large or not what the manifest claims. `source` is bytes or an open file; videos always come as a file. Its process can
open no other file than those of libraries. Only `read` decodes pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DecodeError
from pipeline.types import ClipKind, PixelRegion, Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one file may cost, and how it is decoded."""

    image_pixels: int
    frame_pixels: int
    duration_s: float
    threads: int = 1
    fast: bool = False  # decode JPEGs at a reduced scale
    tolerate: bool = False  # use what there is of a cut-off file
    holes: bool = False  # only some bytes of the video have arrived

    def check_size(self, size: Size, *, moving: bool) -> None:
        max_pixels = self.frame_pixels if moving else self.image_pixels
        if size[0] * size[1] > max_pixels:
            key = "limits.video.pixels_per_frame" if moving else "limits.image.pixels"
            raise DecodeError("too_large", f"{size[0]}x{size[1]} pixels; raise {key} ({max_pixels:,}) to allow it")
        if min(size) < 1:
            raise DecodeError("empty", f"a picture of {size[0]}x{size[1]} pixels")


def build_too_long_error(seconds: float, limits: DecodeLimits) -> DecodeError:
    return DecodeError(
        "too_long", f"{seconds:.0f} s; raise limits.video.duration_s ({limits.duration_s:g}) to allow it"
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """What a header says. Sizes are upright: one for a video, one for each page of a picture or document."""

    kind: ClipKind
    sizes: tuple[Size, ...]
    count: int = 1  # frames
    fps: float = 0.0
    times: tuple[float, ...] = ()  # of every frame, where they are not evenly spaced
    is_truncated: bool = False  # a video whose file ends early; only what there is of it counts


class Kind(Protocol):
    """Kinds beside image, video and pdf have two class attributes: a static method `recognizes(head) -> bool`, which
    gets the first 512 bytes of every file, and `endings`, by which a folder manifest finds their files. Every process
    imports their modules, so they should import decoding libraries inside functions.

    A kind may have `ranges(indices)`: the byte ranges of the file that hold these frames, or None.
    """

    probe: Probe

    def read(self, indices: Sequence[int], size: Size, region: PixelRegion | None = None) -> NDArray[np.uint8]:
        """Frames or pages, cut to a region and resized: [frames, 3, height, width]."""
        ...

    def close(self) -> None: ...
