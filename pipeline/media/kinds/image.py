"""A picture file -> pixels, as Pillow reads it.

Upright by its EXIF mark, transparency laid on white, as the reference does. Two things are done where
the reference is wrong: 16-bit samples are scaled, not cut off at 255, and all pages of a TIFF are
pictures, because a scanned document that loses its second page loses it silently; smaller copies of a page are not.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.fetch.sniff import sniff_kind
from pipeline.media.kinds.base import DecodeLimits, Probe, build_too_long_error
from pipeline.media.resize import resize, resize_stripes
from pipeline.types import Size

PIL.Image.MAX_IMAGE_PIXELS = None  # the job's limits stand in its place, and are errors, not warnings
ORIENTATION_TAG, PHOTOMETRIC_TAG = 0x0112, 262
TRANSPOSE_BY_ORIENTATION = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
PIL.Image.init()
with suppress(ImportError):  # an extra: what telephones write
    import pillow_heif

    pillow_heif.register_heif_opener()
PILLOW_FORMATS = [name for name in PIL.Image.ID if name != "EPS"]  # PostScript is a program, and would be run
STRIPE_ABOVE_PIXELS, STRIPE_PIXELS = 24_000_000, 2_000_000  # pixels
MAX_FRAMES = 10_000
UNKNOWN_FORMAT_MESSAGE = "no picture, video or PDF that can be read"
DEFAULT_FRAME_S = 0.1  # how long a frame stays when the file does not say
EXIF_ERRORS = (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error)


class ImageKind:
    """`moving`: an animation, read as a video."""

    def __init__(self, source: bytes | Path | BinaryIO, limits: DecodeLimits, *, moving: bool = False):
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = limits.tolerate
        self.limits = limits
        head = source[:16] if isinstance(source, bytes) else b""
        try:
            self.image = PIL.Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=PILLOW_FORMATS
            )
        except PIL.UnidentifiedImageError as error:
            what = "a picture of a form that cannot be read" if sniff_kind(head) == "image" else UNKNOWN_FORMAT_MESSAGE
            raise DecodeError("unknown_format", f"{what}; it begins with {head!r}") from error
        limits.check_size(self.image.size, moving=moving)
        self.page_numbers: list[int] = []  # of a TIFF's pages
        self.probe = self._probe_animation() if moving else self._probe_pages()

    def _probe_pages(self) -> Probe:
        if self.image.format != "TIFF":
            return Probe("image", (read_upright_size(self.image),))
        sizes, copies = {}, set()
        for page in range(min(getattr(self.image, "n_frames", 1), MAX_FRAMES)):
            self.image.seek(page)
            self.limits.check_size(self.image.size, moving=False)
            sizes[page] = self.image.size  # Pillow gives a TIFF's size upright
            copies |= {page} if is_reduced_copy(self.image) else set()
        self.page_numbers = [page for page in sizes if page not in copies] or [*sizes]
        return Probe("image", tuple(sizes[page] for page in self.page_numbers), len(self.page_numbers))

    def _probe_animation(self) -> Probe:
        times, now = [], 0.0
        for index in range(min(getattr(self.image, "n_frames", 1), MAX_FRAMES)):
            self.image.seek(index)
            if self.image.format == "WEBP":
                self.image.load()  # or it would not say how long the frame stays
            times.append(now)
            now += float(self.image.info.get("duration", 0) or 0) / 1000 or DEFAULT_FRAME_S
        if now > self.limits.duration_s:
            raise build_too_long_error(now, self.limits)
        return Probe("video", (read_upright_size(self.image),), len(times), len(times) / now, tuple(times))

    def read(self, indices: Sequence[int], size: Size) -> NDArray[np.uint8]:
        """In order: an animation is decoded from its start."""
        return np.concatenate([resize_image(self.load_frame(index, size), size) for index in indices])

    def load_frame(self, index: int, size: Size) -> PIL.Image.Image:
        place = self.page_numbers[index] if self.page_numbers else index
        if place or self.image.tell():
            self.image.seek(place)
        turned = read_orientation(self.image) in (5, 6, 7, 8)
        if self.limits.fast and self.image.format in ("JPEG", "MPO"):
            self.image.draft("RGB", (size[1], size[0]) if turned else size)
        try:
            self.image.load()
        except OSError as error:
            kind = "truncated" if "truncated" in str(error) else "undecodable"
            raise DecodeError(kind, f"{self.image.format} picture: {error}") from error
        return to_rgb(turn_upright(self.image))

    def close(self) -> None:
        self.image.close()


def resize_image(image: PIL.Image.Image, size: Size) -> NDArray[np.uint8]:
    """A copy of a very large picture would be the largest thing in memory, so it is taken in stripes."""
    width, height = image.size
    if width * height < STRIPE_ABOVE_PIXELS:
        return resize(np.asarray(image)[None], size)
    rows = max(1, STRIPE_PIXELS // width)
    boxes = ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))
    return resize_stripes((np.asarray(image.crop(box)) for box in boxes), size)


def is_reduced_copy(image: PIL.Image.Image) -> bool:
    """Whether a TIFF's page is another one made smaller, or its mask, as maps, slides and cameras have them."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    kind = tags.get(254, 0)
    return (isinstance(kind, int) and bool(kind & 0b101)) or tags.get(255) == 2


def read_orientation(image: PIL.Image.Image) -> int:
    """The EXIF mark; a broken one is none."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except EXIF_ERRORS:
        return 1


def read_upright_size(image: PIL.Image.Image) -> Size:
    width, height = image.size
    return (height, width) if read_orientation(image) in (5, 6, 7, 8) else (width, height)


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Not by `exif_transpose`, which writes all EXIF anew and breaks where any of it is broken."""
    turn = TRANSPOSE_BY_ORIENTATION.get(read_orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image  # `convert` would copy it
    if image.mode.startswith("I") or image.mode == "F":
        return to_eight_bits(image).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        opaque = image.convert("RGBA")
        white = PIL.Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Samples of more than 8 bits: 0..1, 0..255 or 0..65535, whichever they fit."""
    samples = np.asarray(image)
    if samples.dtype.itemsize == 2:
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == 0:  # Pillow heeds it for 8 bits only
            samples = 65535 - samples
        return PIL.Image.fromarray((samples // np.array(257, samples.dtype)).astype(np.uint8))
    samples = np.nan_to_num(samples.astype(np.float32))
    top = samples.max(initial=0)
    most = 1 if image.mode == "F" and top <= 1 else 255 if top <= 255 else 65535
    return PIL.Image.fromarray(np.clip(samples * (255 / most), 0, 255).astype(np.uint8))
