"""The pages of a PDF as pictures, through PDFium (`pypdfium2`, an extra).

A page has no pixels of its own. Its size, and boxes in the answers, are in pixels at 144 dpi, two a point. It is
rendered at the size that the model asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.types import ClipKind, PixelRegion, Size

PIXELS_PER_POINT = 2
MAX_PAGES = 10_000


class PdfKind:
    def __init__(self, source: bytes | BinaryIO, limits: DecodeLimits, *, claimed_kind: ClipKind | None = None):
        if claimed_kind == "video":
            raise DecodeError("kind", "is a PDF, and the manifest calls it a video")
        try:
            import pypdfium2
        except ImportError as error:
            raise DecodeError("package", "PDF needs pypdfium2 on the workers: pip install 'vlbatch[pdf]'") from error
        try:
            # PDFium sets no error for a document without pages, and tells that of an earlier document then.
            pypdfium2.raw.FPDF_LoadMemDocument(b"", 0, None)
            self.document = pypdfium2.PdfDocument(source)
            self.document.init_forms()  # draws what people filled in
            count = min(len(self.document), MAX_PAGES)
        except pypdfium2.PdfiumError as error:
            kind = "encrypted" if "assword" in str(error) else "undecodable"
            raise DecodeError(kind, f"PDF: {error}") from error
        if not count:
            raise DecodeError("empty", "a PDF without pages")
        sizes = tuple(self._compute_page_size(page) for page in range(count))
        self.limits = limits
        self.probe = Probe("image", sizes, count)

    def _compute_page_size(self, page: int) -> Size:
        """(0, 0) for a broken page, so that the others can be shown."""
        from pypdfium2 import PdfiumError

        try:
            width, height = self.document.get_page_size(page)
        except PdfiumError:
            return 0, 0
        return math.ceil(width * PIXELS_PER_POINT), math.ceil(height * PIXELS_PER_POINT)

    def read(self, indices: Sequence[int], size: Size, region: PixelRegion | None = None) -> NDArray[np.uint8]:
        from pipeline.media.resize import resize  # it imports torch, which headers are read without

        return np.concatenate([resize(self._render_page(index, size, region)[None], size) for index in indices])

    def _render_page(self, index: int, size: Size, region: PixelRegion | None) -> NDArray[np.uint8]:
        """Never smaller than `size`, so that the resizing shrinks it a little at most."""
        self.limits.check_size(self.probe.sizes[index], moving=False)
        page = self.document[index]
        page_width, page_height = page.get_size()
        left, top, right, bottom = (0.0, 0.0, page_width, page_height)
        if region:
            left, top = region[0] / PIXELS_PER_POINT, region[1] / PIXELS_PER_POINT
            right = min(region[2] / PIXELS_PER_POINT, page_width)
            bottom = min(region[3] / PIXELS_PER_POINT, page_height)
        width, height = right - left, bottom - top
        scale = max(size[0] / width, size[1] / height)
        self.limits.check_size((math.ceil(width * scale), math.ceil(height * scale)), moving=False)
        crop = (left, page_height - bottom, page_width - right, top)
        drawn = page.render(scale=scale, crop=crop, rev_byteorder=True, prefer_bgrx=False).to_numpy()
        page.close()
        pixels: NDArray[np.uint8] = np.ascontiguousarray(drawn[:, :, :3] if drawn.shape[2] > 3 else drawn)
        return pixels

    def close(self) -> None:
        self.document.close()
