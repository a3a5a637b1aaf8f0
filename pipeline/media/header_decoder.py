"""A FrameDecoder for planning: reads headers only, and returns zero pixels of the right shape.

Sizes, frames, times and refusals come from the code that decodes in a run. Pillow reads the headers of JPEG, PNG and
TIFF without native code, so they are read in this process. The decoder's process is started for other formats, and
only then.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.errors import DecodeError, FetchError
from pipeline.fetch.blob import Blob, ByteRanges
from pipeline.fetch.header_fetcher import HeaderBlob, read_webp_size
from pipeline.fetch.remote_object import RangedFile
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.kinds.image import EXIF_ERRORS, ImageKind, read_upright_size
from pipeline.types import ClipKind, PixelRegion, Size

JPEG_AND_PNG_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")
PNG_ORIENTATION_KEYS = ("xmp", "XML:com.adobe.xmp")  # other places of a PNG's orientation


class HeaderDecoder:
    def __init__(self, limits: DecodeLimits):
        self.limits = limits
        self.client: DecoderClient | None = None

    def open(self, blob: Blob, kind: str, *, claimed_kind: ClipKind | None, deadline: float) -> Probe:
        is_still = kind == "image" and claimed_kind != "video"
        if is_still and (probe := self._probe_here(blob)):
            return probe
        self.client = self.client or DecoderClient(self.limits, reads_pixels=False)
        if not isinstance(blob, HeaderBlob) or blob.fetch_whole is None:
            return self.client.open(blob, kind, claimed_kind=claimed_kind, deadline=deadline)
        if is_still and not blob.ranged_file:  # counting the frames of an animation needs the whole file
            try:
                return self.client.open(blob, kind, claimed_kind=claimed_kind, deadline=deadline)
            except DecodeError:
                pass  # perhaps only because the rest is missing
        with blob.fetch_whole() as whole_blob:
            return self.client.open(whole_blob, kind, claimed_kind=claimed_kind, deadline=deadline)

    def _probe_here(self, blob: Blob) -> Probe | None:
        """None where the header needs the decoder's process."""
        if isinstance(blob, HeaderBlob) and blob.ranged_file:
            return probe_tiff(blob.ranged_file, self.limits)
        size = read_image_size(blob.data) if blob.data else None
        if size is None:
            return None
        self.limits.check_size(size, moving=False)
        return Probe("image", (size,))

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        return [[] for _ in batches]

    def read(
        self, indices: Sequence[int], size: Size, *, region: PixelRegion | None = None, deadline: float
    ) -> NDArray[np.uint8]:
        return np.broadcast_to(np.zeros((), np.uint8), (len(indices), 3, size[1], size[0]))

    def wait_until_ready(self) -> None:
        if self.client:
            self.client.wait_until_ready()

    def close(self) -> None:
        if self.client:
            self.client.close()


def probe_tiff(file: RangedFile, limits: DecodeLimits) -> Probe | None:
    """None where its directories cannot be read from here."""
    try:
        return ImageKind(io.BufferedReader(file), limits).probe
    except (*EXIF_ERRORS, EOFError):
        return None
    except (DecodeError, FetchError) as error:
        if error.kind in ("unknown_format", "changed"):  # "changed": also from a server without ranges
            return None
        raise


def read_image_size(data: bytes) -> Size | None:
    """The upright size of a JPEG, PNG or WebP; None where the beginning of the file does not tell."""
    if not data.startswith(JPEG_AND_PNG_SIGNATURES):
        return read_webp_size(data)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.format != "PNG" or "exif" in image.info:
                return read_upright_size(image)
            may_be_turned = b"eXIf" in data or any(name in image.info for name in PNG_ORIENTATION_KEYS)
            return None if may_be_turned else image.size  # `getexif` would decode the pixels to read behind them
    except (*EXIF_ERRORS, zlib.error, EOFError):
        return None
