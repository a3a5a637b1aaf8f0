"""Qwen2-VL: 28 pixels a token, boxes in thousandths, time counted in pairs of frames.

Video follows qwen-vl-utils, which the models were trained and shown with: an even number of frames,
evenly spread, each within a budget that shrinks as they get more. Where it refuses a clip for having
fewer frames than asked, all there are is taken.
"""

from __future__ import annotations

import math

from pipeline.model.families.qwen import Qwen, bounds, fit, wanted
from pipeline.types import Ask, Size

MIN_TOKENS, MAX_TOKENS, TOTAL_TOKENS = 128, 768, 0.9 * 128000  # of a frame, of a frame, of a video


class Qwen2VL(Qwen):
    trained_context = 32768

    def frames(self, part: range, fps: float, ask: Ask) -> list[int]:
        import torch  # its own float32 linspace decides the ties, as in the reference

        wish = even_frames(len(part), fps, ask)
        places: list[int] = torch.linspace(part[0], part[-1], wish).round().long().tolist()
        return places

    def video_size(self, source: Size, frames: int, ask: Ask) -> Size:
        area = self.factor**2
        if fixed := wanted(ask):
            return fit(fixed, factor=self.factor, least=4 * area, most=16384 * area)
        least, _ = bounds(ask, MIN_TOKENS * area, MAX_TOKENS * area)
        share = (ask.total_pixels or TOTAL_TOKENS * area) / frames * 2
        most = max(min(MAX_TOKENS * area, share), int(least * 1.05))
        return fit(source, factor=self.factor, least=least, most=math.floor(min(most, ask.max_pixels or most)))


def even_frames(count: int, fps: float, ask: Ask) -> int:
    """How many of `count` frames: even, where there are two.

    >>> even_frames(100, 25.0, Ask(fps=2.0)), even_frames(7, 25.0, Ask(frames=99)), even_frames(1, 25.0, Ask())
    (8, 6, 1)
    """
    if ask.frames is not None:
        wish = float(round(ask.frames / 2) * 2)
    else:
        most = (ask.max_frames or min(768, count)) // 2 * 2
        wish = min(max(count / fps * (ask.fps or 2.0), math.ceil((ask.min_frames or 4) / 2) * 2), most)
    return max(math.floor(min(wish, count) / 2) * 2, min(2, count))
