"""Pictures, through Pillow: turned upright by EXIF, transparency on white, as the reference processors do.

It differs from the reference where that is wrong. 16-bit samples are scaled instead of clipped at 255. Every page of
a TIFF is a picture, because a scanned document must not lose its second page silently; reduced copies of a page are
left out.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.fetch.sniff import sniff_kind
from pipeline.media.kinds.base import DecodeLimits, Probe, build_too_long_error
from pipeline.types import ClipKind, PixelRegion, Size

PIL.Image.MAX_IMAGE_PIXELS = None  # the job's limits replace it
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
with suppress(ImportError):  # an extra: HEIC, as phones write it
    import pillow_heif

    pillow_heif.register_heif_opener()
PILLOW_FORMATS = [name for name in PIL.Image.ID if name != "EPS"]  # PostScript is a program that would run
STRIPE_ABOVE_PIXELS, STRIPE_PIXELS = 24_000_000, 2_000_000
MAX_FRAMES = 10_000
UNREADABLE_IMAGE_MESSAGE = "a picture in a format that cannot be read"
UNKNOWN_FORMAT_MESSAGE = "no picture, video or PDF that can be read"
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")
DEFAULT_FRAME_S = 0.1  # of an animation that gives no durations
EXIF_ERRORS = (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error)


class ImageKind:
    """An animation is its first frame, or a video where the manifest claims so."""

    def __init__(self, source: bytes | BinaryIO, limits: DecodeLimits, *, claimed_kind: ClipKind | None = None):
        moving = claimed_kind == "video"
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = limits.tolerate
        self.limits = limits
        head = source[:16] if isinstance(source, bytes) else b""
        try:
            self.image = PIL.Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=PILLOW_FORMATS
            )
        except PIL.UnidentifiedImageError as error:
            problem = UNREADABLE_IMAGE_MESSAGE if sniff_kind(head) == "image" else UNKNOWN_FORMAT_MESSAGE
            hint = "; it is text, such as a server's page about an error" if TEXT.fullmatch(head) else ""
            raise DecodeError("unknown_format", f"{problem}{hint}") from error
        limits.check_size(self.image.size, moving=moving)
        self.first_frame = self.image.tell()  # 1 in a PSD, whose first frame is the picture without its layers
        self.page_numbers: list[int] = []  # places of a TIFF's pages among its images
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
        times, seconds = [], 0.0
        for index in range(min(max(1, getattr(self.image, "n_frames", 1)), MAX_FRAMES)):
            self._seek(index)
            if self.image.format == "WEBP":
                self.image.load()  # sets the frame's duration
            times.append(seconds)
            seconds += float(self.image.info.get("duration", 0) or 0) / 1000 or DEFAULT_FRAME_S
        if seconds > self.limits.duration_s:
            raise build_too_long_error(seconds, self.limits)
        return Probe("video", (read_upright_size(self.image),), len(times), len(times) / seconds, tuple(times))

    def read(self, indices: Sequence[int], size: Size, region: PixelRegion | None = None) -> NDArray[np.uint8]:
        return np.concatenate([self._read_frame(index, size, region) for index in indices])

    def _read_frame(self, index: int, size: Size, region: PixelRegion | None) -> NDArray[np.uint8]:
        self._seek(index)
        if self.limits.fast and region is None and self.image.format in ("JPEG", "MPO"):
            is_turned = read_orientation(self.image) in (5, 6, 7, 8)
            self.image.draft("RGB", (size[1], size[0]) if is_turned else size)
        image = self._load_image()
        return resize_image(image if region is None else image.crop(region), size)

    def _seek(self, index: int) -> None:
        place = self.page_numbers[index] if self.page_numbers else self.first_frame + index
        if place != self.image.tell():
            self.image.seek(place)

    def _load_image(self) -> PIL.Image.Image:
        try:
            self.image.load()
        except OSError as error:
            kind = "truncated" if "truncated" in str(error) else "undecodable"
            raise DecodeError(kind, f"{self.image.format} picture: {error}") from error
        return to_rgb(turn_upright(self.image))

    def close(self) -> None:
        self.image.close()


def resize_image(image: PIL.Image.Image, size: Size) -> NDArray[np.uint8]:
    """In stripes where a copy of the picture would be the largest thing in memory."""
    from pipeline.media.resize import resize, resize_stripes  # it imports torch, which headers are read without

    width, height = image.size
    if width * height < STRIPE_ABOVE_PIXELS:
        return resize(np.asarray(image)[None], size)
    rows = max(1, STRIPE_PIXELS // width)
    boxes = ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))
    return resize_stripes((np.asarray(image.crop(box)) for box in boxes), size)


def is_reduced_copy(image: PIL.Image.Image) -> bool:
    """Whether a TIFF's image is a smaller copy or the mask of another one, as maps, slides and cameras have them."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    subfile_type = tags.get(254, 0)
    return (isinstance(subfile_type, int) and bool(subfile_type & 0b101)) or tags.get(255) == 2


def read_orientation(image: PIL.Image.Image) -> int:
    """By EXIF; 1, which is upright, where EXIF is broken."""
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
    """`exif_transpose` would rewrite all EXIF, and fail where any of it is broken."""
    transpose = TRANSPOSE_BY_ORIENTATION.get(read_orientation(image))
    return image if transpose is None else image.transpose(transpose)


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
    """Scales samples of more than 8 bits. Their range is the smallest of 0..1, 0..255, 0..65535 that fits."""
    samples = np.asarray(image)
    if samples.dtype.itemsize == 2:
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == 0:  # white is zero; Pillow inverts 8 bits only
            samples = 65535 - samples
        return PIL.Image.fromarray((samples // np.array(257, samples.dtype)).astype(np.uint8))
    samples = np.nan_to_num(samples.astype(np.float32))
    largest = samples.max(initial=0)
    white = 1 if image.mode == "F" and largest <= 1 else 255 if largest <= 255 else 65535
    return PIL.Image.fromarray(np.clip(samples * (255 / white), 0, 255).astype(np.uint8))
