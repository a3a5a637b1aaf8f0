"""A PDF -> its pages as pictures, through PDFium (`pypdfium2`, an extra).

A page has no pixels of its own: it counts as its picture at two pixels a point (144 dpi), which is what
boxes in the answers refer to, and is drawn at the size the model asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.media.resize import resize
from pipeline.types import Size

PIXELS_PER_POINT = 2
MAX_PAGES = 10_000  # whose sizes are read


class PdfKind:
    def __init__(self, source: bytes | Path, limits: DecodeLimits, *, moving: bool = False):
        try:
            import pypdfium2
        except ImportError as error:
            raise DecodeError("package", "PDF needs pypdfium2 on the workers: pip install 'vlbatch[pdf]'") from error
        try:
            self.document = pypdfium2.PdfDocument(source)
            self.document.init_forms()  # or what people filled in would not be drawn
            count = min(len(self.document), MAX_PAGES)
            sizes = tuple(self._compute_page_size(page) for page in range(count))
        except pypdfium2.PdfiumError as error:
            kind = "encrypted" if "assword" in str(error) else "undecodable"
            raise DecodeError(kind, f"PDF: {error}") from error
        if not sizes:
            raise DecodeError("empty", "a PDF without pages")
        self.limits = limits
        self.probe = Probe("image", sizes, count)

    def _compute_page_size(self, page: int) -> Size:
        width, height = self.document.get_page_size(page)
        return math.ceil(width * PIXELS_PER_POINT), math.ceil(height * PIXELS_PER_POINT)

    def read(self, indices: Sequence[int], size: Size) -> NDArray[np.uint8]:
        return np.concatenate([resize(self._render_page(index, size)[None], size) for index in indices])

    def _render_page(self, index: int, size: Size) -> NDArray[np.uint8]:
        """Never smaller than `size`, so that what is left to do is at most to shrink it a little."""
        self.limits.check_size(self.probe.sizes[index], moving=False)
        page = self.document[index]
        width, height = page.get_size()
        scale = max(size[0] / width, size[1] / height)
        self.limits.check_size((math.ceil(width * scale), math.ceil(height * scale)), moving=False)
        drawn = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=False).to_numpy()
        page.close()
        pixels: NDArray[np.uint8] = np.ascontiguousarray(drawn[:, :, :3] if drawn.shape[2] > 3 else drawn)
        return pixels

    def close(self) -> None:
        self.document.close()
