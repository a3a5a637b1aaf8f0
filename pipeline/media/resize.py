"""Frames, size -> frames of that size, bit for bit what the reference processors make of them.

That is torch's bicubic with antialiasing on uint8. Rows of RGB as decoders give them are resized where
they lie (`channels_last`): the same bits, four times faster than plane by plane. A very large picture is
made narrow stripe by stripe and then low, which are the two passes that torch makes too: the same bits
again, from a copy of one stripe.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.types import Size


def resize(frames: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """[frames, height, width, 3] -> [frames, 3, height, width]."""
    return to_planar_array(interpolate_bicubic(torch.from_numpy(frames).permute(0, 3, 1, 2), size))


def resize_stripes(stripes: Iterable[NDArray[np.uint8]], size: Size) -> NDArray[np.uint8]:
    """Stripes of one picture from top to bottom, each [height, width, 3] -> [1, 3, height, width]."""
    narrow = [
        interpolate_bicubic(torch.from_numpy(stripe[None]).permute(0, 3, 1, 2), (size[0], len(stripe)))
        for stripe in stripes
    ]
    return to_planar_array(interpolate_bicubic(torch.cat(narrow, dim=2), size))


def interpolate_bicubic(pixels: torch.Tensor, size: Size) -> torch.Tensor:
    if pixels.shape[2:] == (size[1], size[0]):
        return pixels
    return F.interpolate(pixels, size=(size[1], size[0]), mode="bicubic", antialias=True, align_corners=False)


def to_planar_array(pixels: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = pixels.contiguous().numpy()
    return found
