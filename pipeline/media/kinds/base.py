"""The seam between the decoder's process and whatever can read one kind of file.

A kind is built as `Kind(source, bounds, moving=...)`, reads the header, and refuses there what is too
large. Pixels are decoded by `read`, and only those asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.errors import DecodeError
from pipeline.types import Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What may be spent on one file."""

    image_pixels: int
    frame_pixels: int
    duration_s: float
    threads: int = 1
    fast: bool = False  # JPEGs at reduced scale
    tolerate: bool = False  # cut-off pictures: what there is of them
    holes: bool = False  # of a video only part of the bytes is there yet

    def check_size(self, size: Size, *, moving: bool) -> None:
        most = self.frame_pixels if moving else self.image_pixels
        if size[0] * size[1] > most:
            name = "video.pixels_per_frame" if moving else "image.pixels"
            raise DecodeError("too_large", f"{size[0]}x{size[1]} pixels; raise limits.{name} ({most:,}) to allow it")
        if min(size) < 1:
            raise DecodeError("empty", f"a picture of {size[0]}x{size[1]} pixels")


def build_too_long_error(seconds: float, limits: DecodeLimits) -> DecodeError:
    return DecodeError(
        "too_long", f"{seconds:.0f} s; raise limits.video.duration_s ({limits.duration_s:g}) to allow it"
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """What a header says. Sizes are upright: one of a video, one a page of a picture or document."""

    kind: Literal["image", "video"]
    sizes: tuple[Size, ...]
    count: int = 1  # frames
    fps: float = 0.0
    times: tuple[float, ...] = ()  # of every frame, where they are not evenly spaced


class Kind(Protocol):
    probe: Probe

    def read(self, indices: Sequence[int], size: Size) -> NDArray[np.uint8]:
        """Frames or pages, resized: [frames, 3, height, width]."""
        ...

    def close(self) -> None: ...
