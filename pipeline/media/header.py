"""A file's header -> Clips without pixels: all that is known of a medium before anything is decoded.

Sizes, frames, times and what is refused come from the code that decodes; only reading pixels is left out. Their
place is taken by an array of the right shape that holds a single byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.intake.blob import Blob, Ranges
from pipeline.intake.heads import Head
from pipeline.media.decoder import Decoder
from pipeline.media.kinds.base import Probe
from pipeline.types import Size


class Header(Decoder):
    def open(self, blob: Blob, kind: str, *, moving: bool, ends: float) -> Probe:
        if not isinstance(blob, Head) or blob.whole is None:
            return super().open(blob, kind, moving=moving, ends=ends)
        if not moving:  # the frames of an animation are counted at its end
            try:
                return super().open(blob, kind, moving=moving, ends=ends)
            except DecodeError:
                pass  # perhaps only because the rest is missing
        with blob.whole() as all_of_it:
            return super().open(all_of_it, kind, moving=moving, ends=ends)

    def ranges(self, batches: Sequence[Sequence[int]], *, ends: float) -> list[Ranges]:
        return [[] for _ in batches]

    def read(self, indices: Sequence[int], size: Size, *, ends: float) -> NDArray[np.uint8]:
        return np.broadcast_to(np.zeros((), np.uint8), (len(indices), 3, size[1], size[0]))
