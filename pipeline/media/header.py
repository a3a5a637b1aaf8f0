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
from pipeline.fetch.blob import Blob, Ranges
from pipeline.fetch.header_fetcher import Head, webp_size
from pipeline.fetch.ranged_file import Ranged
from pipeline.media.decoder_client import Decoder
from pipeline.media.kinds.base import Bounds, Probe
from pipeline.media.kinds.image import BAD_EXIF, Image, upright
from pipeline.types import Size

PLAIN = (b"\xff\xd8\xff", b"\x89PNG")
TURNS = ("xmp", "XML:com.adobe.xmp")  # what may turn a PNG beside EXIF


class Header(Decoder):
    def __init__(self, bounds: Bounds):
        self.bounds = bounds
        self.behind: Decoder | None = None

    def open(self, blob: Blob, kind: str, *, moving: bool, ends: float) -> Probe:
        if not moving and (probe := self._glance(blob)):
            return probe
        self.behind = self.behind or Decoder(self.bounds)
        if not isinstance(blob, Head) or blob.whole is None:
            return self.behind.open(blob, kind, moving=moving, ends=ends)
        if not moving and not blob.file:  # the frames of an animation are counted at its end
            try:
                return self.behind.open(blob, kind, moving=moving, ends=ends)
            except DecodeError:
                pass  # perhaps only because the rest is missing
        with blob.whole() as all_of_it:
            return self.behind.open(all_of_it, kind, moving=moving, ends=ends)

    def _glance(self, blob: Blob) -> Probe | None:
        """What can be told here."""
        if isinstance(blob, Head) and blob.file:
            return pages_of(blob.file, self.bounds)
        size = size_of(blob.data) if blob.data else None
        if size:
            self.bounds.check(size, moving=False)
        return Probe("image", (size,)) if size else None

    def ranges(self, batches: Sequence[Sequence[int]], *, ends: float) -> list[Ranges]:
        return [[] for _ in batches]

    def read(self, indices: Sequence[int], size: Size, *, ends: float) -> NDArray[np.uint8]:
        return np.broadcast_to(np.zeros((), np.uint8), (len(indices), 3, size[1], size[0]))

    def await_start(self) -> None:
        if self.behind:
            self.behind.await_start()

    def close(self) -> None:
        if self.behind:
            self.behind.close()


def pages_of(file: Ranged, bounds: Bounds) -> Probe | None:
    """Of a TIFF, where its lists are in order."""
    try:
        return Image(io.BufferedReader(file), bounds).probe
    except (*BAD_EXIF, EOFError):
        return None
    except (DecodeError, FetchError) as error:
        if error.kind in ("unknown_format", "changed"):  # or a server that gives no ranges
            return None
        raise


def size_of(data: bytes) -> Size | None:
    """Of a JPEG, PNG or WebP, upright, where its beginning alone tells."""
    if not data.startswith(PLAIN):
        return webp_size(data)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.format != "PNG" or "exif" in image.info:
                return upright(image)
            late = b"eXIf" in data or any(name in image.info for name in TURNS)
            return None if late else image.size  # `getexif` would decode all of it, to look behind the pixels
    except (*BAD_EXIF, zlib.error, EOFError):
        return None
