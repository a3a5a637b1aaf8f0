"""Qwen3-VL, dense and mixture of experts: 32 pixels a token, boxes in thousandths, time written as text.

Each layer of a video (two frames) is a picture of its own after a timestamp, `<0.3 seconds>`, with one pair of
markers. Frames and sizes follow transformers' video processor: the budget is that of the whole clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import PromptError
from pipeline.model.families.base import Files
from pipeline.model.families.qwen import Colour, Grid, Qwen, bounds, budget, fit, shaped, wanted
from pipeline.model.prompt import Style
from pipeline.types import Ask, Clip, Size

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Qwen3VL(Qwen):
    patch = 16
    times: Literal["clip", "source"] = "source"  # as the timestamps of its prompts
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)
    style = Style()

    def __init__(self, files: Files, tokenizer: Tokenizer, *, add_vision_id: bool = False):
        super().__init__(files, tokenizer, add_vision_id=add_vision_id)
        self.video_pixels = budget(files.video, (128 * 32 * 32, 768 * 32 * 32))

    def frames(self, part: range, fps: float, ask: Ask) -> list[int]:
        least, most = ask.min_frames or 4, ask.max_frames or 768
        wish = ask.frames or min(max(int(len(part) / fps * (ask.fps or 2.0)), least), most)
        places: list[int] = np.linspace(part[0], part[-1], min(wish, len(part))).round().astype(int).tolist()
        return places

    def video_size(self, source: Size, frames: int, ask: Ask) -> Size:
        if fixed := wanted(ask):
            return fit(fixed, factor=self.factor, least=4 * self.factor**2, most=16384 * self.factor**2)
        least, most = bounds(ask, self.video_pixels[0], self.video_pixels[1])
        if ask.min_pixels:
            least = ask.min_pixels * frames
        most = ask.total_pixels or self.video_pixels[1]
        if ask.max_pixels:
            most = min(most, ask.max_pixels * frames)
        return fit_clip(source, frames, factor=self.factor, least=min(least, most), most=most)

    def medium_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        if not times:
            return super().medium_tokens(size)
        layer = self.vision_tokens(size) + 2
        return sum(
            layer + len(self.tokenizer.encode(stamp, add_special_tokens=False).ids)
            for stamp in stamps(times, self.temporal_patch)
        )

    def see(self, clip: Clip) -> Iterator[str | int | Grid]:
        if clip.kind == "image":
            yield from super().see(clip)
            return
        if len(clip.times) != len(clip.pixels):
            raise PromptError(
                "times", f"{len(clip.pixels)} frames but {len(clip.times)} times in {clip.uri or 'a video'}"
            )
        width, height = (side // self.factor for side in clip.size)
        for stamp in stamps(clip.times, self.temporal_patch):
            yield stamp
            yield self.vision_start
            yield Grid(self.video_token, [0], height, width)
            yield self.vision_end


def stamps(times: Sequence[float], every: int) -> list[str]:
    """The timestamp of each layer: the middle between its first and last frame.

    >>> stamps([0.0, 0.5, 1.0], 2)
    ['<0.2 seconds>', '<1.0 seconds>']
    """
    last = len(times) - 1
    ends = [(times[at], times[min(at + every - 1, last)]) for at in range(0, len(times), every)]
    return [f"<{(first + second) / 2:.1f} seconds>" for first, second in ends]


def fit_clip(source: Size, frames: int, *, factor: int, least: int, most: int) -> Size:
    """As `fit`, for the pixels of all frames together. A side under one token is enlarged first."""
    width, height = source
    frames = max(frames, 2)
    if min(source) < factor:
        grow = max(factor / height, factor / width)
        width, height = int(width * grow), int(height * grow)
    shaped((width, height))
    wide, high, deep = round(width / factor) * factor, round(height / factor) * factor, round(frames / 2) * 2
    if deep * wide * high > most:
        shrink = math.sqrt(frames * width * height / most)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif deep * wide * high < least:
        grow = math.sqrt(least / (frames * width * height))
        wide, high = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return wide, high
