"""A file's header -> Clips without pixels: all that is known of a medium before anything is decoded.

Sizes, frames, times and what is refused come from the code that decodes; only reading pixels is left out. Their
place is taken by an array of the right shape that holds a single byte. What Pillow reads without native code, the
headers of JPEG, PNG and TIFF, is read here; the decoder's process is started for everything else, and only then.
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
from pipeline.fetch.ranged_file import RangedFile
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.kinds.image import EXIF_ERRORS, ImageKind, read_upright_size
from pipeline.types import Size

JPEG_AND_PNG_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")
PNG_ORIENTATION_KEYS = ("xmp", "XML:com.adobe.xmp")  # what may turn a PNG beside EXIF


class HeaderDecoder(DecoderClient):
    def __init__(self, limits: DecodeLimits):
        self.limits = limits
        self.client: DecoderClient | None = None

    def open(self, blob: Blob, kind: str, *, moving: bool, deadline: float) -> Probe:
        if not moving and (probe := self._probe_without_client(blob)):
            return probe
        self.client = self.client or DecoderClient(self.limits)
        if not isinstance(blob, HeaderBlob) or blob.fetch_whole is None:
            return self.client.open(blob, kind, moving=moving, deadline=deadline)
        if not moving and not blob.ranged_file:  # the frames of an animation are counted at its end
            try:
                return self.client.open(blob, kind, moving=moving, deadline=deadline)
            except DecodeError:
                pass  # perhaps only because the rest is missing
        with blob.fetch_whole() as all_of_it:
            return self.client.open(all_of_it, kind, moving=moving, deadline=deadline)

    def _probe_without_client(self, blob: Blob) -> Probe | None:
        """What can be told here."""
        if isinstance(blob, HeaderBlob) and blob.ranged_file:
            return probe_tiff(blob.ranged_file, self.limits)
        size = read_image_size(blob.data) if blob.data else None
        if size:
            self.limits.check_size(size, moving=False)
        return Probe("image", (size,)) if size else None

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        return [[] for _ in batches]

    def read(self, indices: Sequence[int], size: Size, *, deadline: float) -> NDArray[np.uint8]:
        return np.broadcast_to(np.zeros((), np.uint8), (len(indices), 3, size[1], size[0]))

    def wait_until_ready(self) -> None:
        if self.client:
            self.client.wait_until_ready()

    def close(self) -> None:
        if self.client:
            self.client.close()


def probe_tiff(file: RangedFile, limits: DecodeLimits) -> Probe | None:
    """Of a TIFF, where its lists are in order."""
    try:
        return ImageKind(io.BufferedReader(file), limits).probe
    except (*EXIF_ERRORS, EOFError):
        return None
    except (DecodeError, FetchError) as error:
        if error.kind in ("unknown_format", "changed"):  # or a server that gives no ranges
            return None
        raise


def read_image_size(data: bytes) -> Size | None:
    """Of a JPEG, PNG or WebP, upright, where its beginning alone tells."""
    if not data.startswith(JPEG_AND_PNG_SIGNATURES):
        return read_webp_size(data)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.format != "PNG" or "exif" in image.info:
                return read_upright_size(image)
            late = b"eXIf" in data or any(name in image.info for name in PNG_ORIENTATION_KEYS)
            return None if late else image.size  # `getexif` would decode all of it, to look behind the pixels
    except (*EXIF_ERRORS, zlib.error, EOFError):
        return None
