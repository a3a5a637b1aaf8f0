"""Qwen2-VL: 28 pixels a token, boxes in thousandths, time counted in pairs of frames.

Video follows qwen-vl-utils, which the models were trained and shown with: an even number of frames,
evenly spread, each within a budget that shrinks as they get more. Where it refuses a clip for having
fewer frames than asked, all there are is taken.
"""

from __future__ import annotations

import math

from pipeline.model.families.qwen import QwenFamily, compute_area_bounds, fit_size, get_requested_size
from pipeline.types import MediaOptions, Size

MIN_FRAME_TOKENS, MAX_FRAME_TOKENS, MAX_VIDEO_TOKENS = 128, 768, 0.9 * 128000  # of a frame, of a frame, of a video


class Qwen2VL(QwenFamily):
    trained_context = 32768

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        import torch  # its own float32 linspace decides the ties, as in the reference

        wish = count_even_frames(len(frame_range), fps, options)
        places: list[int] = torch.linspace(frame_range[0], frame_range[-1], wish).round().long().tolist()
        return places

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size:
        area = self.factor**2
        if fixed := get_requested_size(options):
            return fit_size(fixed, factor=self.factor, min_area=4 * area, max_area=16384 * area)
        least, _ = compute_area_bounds(options, MIN_FRAME_TOKENS * area, MAX_FRAME_TOKENS * area)
        share = (options.total_pixels or MAX_VIDEO_TOKENS * area) / frame_count * 2
        most = max(min(MAX_FRAME_TOKENS * area, share), int(least * 1.05))
        return fit_size(
            source, factor=self.factor, min_area=least, max_area=math.floor(min(most, options.max_pixels or most))
        )


def count_even_frames(frame_count: int, fps: float, options: MediaOptions) -> int:
    """How many of `count` frames: even, where there are two.

    >>> even_frames(100, 25.0, Ask(fps=2.0)), even_frames(7, 25.0, Ask(frames=99)), even_frames(1, 25.0, Ask())
    (8, 6, 1)
    """
    if options.frames is not None:
        wish = float(round(options.frames / 2) * 2)
    else:
        most = (options.max_frames or min(768, frame_count)) // 2 * 2
        wish = min(max(frame_count / fps * (options.fps or 2.0), math.ceil((options.min_frames or 4) / 2) * 2), most)
    return max(math.floor(min(wish, frame_count) / 2) * 2, min(2, frame_count))
