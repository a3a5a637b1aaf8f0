"""Qwen2-VL: 28 pixels a token, boxes in thousandths, positions count time in pairs of frames.

Video follows qwen-vl-utils, with which the models were trained and shown: an even number of frames, evenly spread,
each within a budget that shrinks as their number grows. Where qwen-vl-utils refuses a clip with fewer frames than
requested, this family takes all of its frames.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.model.families.qwen import QwenFamily, compute_area_bounds, fit_size, get_requested_size
from pipeline.types import MediaOptions, Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_FRAME_TOKENS, MAX_FRAME_TOKENS = 128, 768
MAX_VIDEO_TOKENS = 0.9 * 128000


class Qwen2VL(QwenFamily):
    architecture = ModelArchitecture("Qwen2VLForConditionalGeneration", "Qwen2VLConfig")
    trained_context = 32768

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        count = count_even_frames(len(frame_range), fps, options)
        indices: list[int] = space_evenly(frame_range[0], frame_range[-1], count).round().astype(np.int64).tolist()
        return indices

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size:
        area = self.factor**2
        if requested := get_requested_size(options):
            return self.fit_requested_size(requested)
        min_area, _ = compute_area_bounds(options, MIN_FRAME_TOKENS * area, MAX_FRAME_TOKENS * area)
        pair_share = (options.total_pixels or MAX_VIDEO_TOKENS * area) / frame_count * 2
        max_area = max(min(MAX_FRAME_TOKENS * area, pair_share), int(min_area * 1.05))
        max_area = math.floor(min(max_area, options.max_pixels or max_area))
        return fit_size(source, factor=self.factor, min_area=min_area, max_area=max_area)


def space_evenly(first: int, last: int, count: int) -> NDArray[np.float32]:
    """What `torch.linspace` gives, which decides ties in the reference: in single precision, to the last bit.

    torch counts from the nearer end, and rounds a product and its sum once. Double precision holds both without
    rounding where a step is one frame or more.

    >>> space_evenly(0, 5, 3).round()
    array([0., 2., 5.], dtype=float32)
    """
    numbers = np.arange(count)
    step = np.float64((np.float32(last) - np.float32(first)) / np.float32(max(count - 1, 1)))
    from_start, from_end = first + step * numbers, last - step * (count - 1 - numbers)
    return np.where(numbers < max(count // 2, 1), from_start, from_end).astype(np.float32)


def count_even_frames(frame_count: int, fps: float, options: MediaOptions) -> int:
    """How many of the frames to show: an even number, where there are two.

    >>> count_even_frames(100, 25.0, MediaOptions(fps=2.0)), count_even_frames(7, 25.0, MediaOptions(frames=99))
    (8, 6)
    >>> count_even_frames(1, 25.0, MediaOptions())
    1
    """
    if options.frames is not None:
        count = float(round(options.frames / 2) * 2)
    else:
        most = (options.max_frames or min(768, frame_count)) // 2 * 2
        least = math.ceil((options.min_frames or 4) / 2) * 2
        count = min(max(frame_count / fps * (options.fps or 2.0), least), most)
    return max(math.floor(min(count, frame_count) / 2) * 2, min(2, frame_count))
