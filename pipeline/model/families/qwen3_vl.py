"""Qwen3-VL, dense and mixture of experts: 32 pixels a token, boxes in thousandths, time written as text.

Each layer of a video (two frames) follows a timestamp, `<0.3 seconds>`, and stands between markers of its own like an
image. Frames and sizes follow transformers' video processor: the pixel budget is that of the whole clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import PromptError
from pipeline.model.families.base import CheckpointFiles
from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.model.families.qwen import (
    Colour,
    QwenFamily,
    VisionGrid,
    check_aspect_ratio,
    compute_area_bounds,
    get_requested_size,
    parse_area_bounds,
    select_evenly,
)
from pipeline.model.prompt import ChatFormat
from pipeline.types import Clip, MediaOptions, Size

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Qwen3VL(QwenFamily):
    architecture = ModelArchitecture("Qwen3VLForConditionalGeneration", "Qwen3VLConfig")
    patch_size = 16
    time_origin: Literal["clip", "source"] = "source"  # as the timestamps of its prompts
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)
    chat_format = ChatFormat()

    def __init__(self, files: CheckpointFiles, tokenizer: Tokenizer, **options: Any):
        super().__init__(files, tokenizer, **options)
        self.video_pixel_bounds = parse_area_bounds(files.video_processor, (128 * 32 * 32, 768 * 32 * 32))

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        return select_evenly(frame_range, fps, options)

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size:
        if requested := get_requested_size(options):
            return self.fit_requested_size(requested)
        least, _ = compute_area_bounds(options, *self.video_pixel_bounds)
        if options.min_pixels:
            least = options.min_pixels * frame_count
        most = options.total_pixels or self.video_pixel_bounds[1]
        if options.max_pixels:
            most = min(most, options.max_pixels * frame_count)
        return fit_clip_size(source, frame_count, factor=self.factor, min_volume=min(least, most), max_volume=most)

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        if not times:
            return super().count_media_tokens(size)
        tokens_per_layer = self.count_vision_tokens(size) + 2
        return sum(
            tokens_per_layer + len(self.tokenizer.encode(timestamp, add_special_tokens=False).ids)
            for timestamp in format_timestamps(times, self.temporal_patch_size)
        )

    def build_clip_pieces(self, clip: Clip) -> Iterator[str | int | VisionGrid]:
        if clip.kind == "image":
            yield from super().build_clip_pieces(clip)
            return
        if len(clip.times) != len(clip.pixels):
            raise PromptError(
                "times", f"{len(clip.pixels)} frames but {len(clip.times)} times in {clip.uri or 'a video'}"
            )
        width, height = (side // self.factor for side in clip.size)
        for timestamp in format_timestamps(clip.times, self.temporal_patch_size):
            yield timestamp
            yield self.vision_start
            yield VisionGrid(self.video_token, [0], height, width)
            yield self.vision_end

    def build_placeholder(self, clip: Clip) -> Iterator[int]:
        if clip.kind == "image":
            yield from super().build_placeholder(clip)
        else:  # timestamps and markers are part of what replaces it
            yield self.video_token


class Cosmos3Omni(Qwen3VL):
    """Qwen3-VL inside a checkpoint that also generates pictures and sound; those weights are left where they are."""

    architecture = ModelArchitecture(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        stored_names=(
            (r"^(blocks|merger|patch_embed|pos_embed|deepstack_merger_list)\.", r"visual.\1."),
            (r"\.to_([qkv])\.", r".\1_proj."),
            (r"\.to_out\.", ".o_proj."),
            (r"\.norm_([qk])\.", r".\1_norm."),
        ),
    )


class Qwen3VLMoe(Qwen3VL):
    architecture = ModelArchitecture("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig")


def format_timestamps(times: Sequence[float], frames_per_layer: int) -> list[str]:
    """The timestamp of each layer: the middle between its first and its last frame.

    >>> format_timestamps([0.0, 0.5, 1.0], 2)
    ['<0.2 seconds>', '<1.0 seconds>']
    """
    last = len(times) - 1
    ends = [(times[at], times[min(at + frames_per_layer - 1, last)]) for at in range(0, len(times), frames_per_layer)]
    return [f"<{(first + second) / 2:.1f} seconds>" for first, second in ends]


def fit_clip_size(source: Size, frame_count: int, *, factor: int, min_volume: int, max_volume: int) -> Size:
    """Like `fit_size`, for the pixels of all frames together. A side under one token is enlarged first."""
    width, height = source
    frame_count = max(frame_count, 2)
    if min(source) < factor:
        grow = max(factor / height, factor / width)
        width, height = int(width * grow), int(height * grow)
    check_aspect_ratio((width, height))
    wide, high, deep = round(width / factor) * factor, round(height / factor) * factor, round(frame_count / 2) * 2
    if deep * wide * high > max_volume:
        shrink = math.sqrt(frame_count * width * height / max_volume)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif deep * wide * high < min_volume:
        grow = math.sqrt(min_volume / (frame_count * width * height))
        wide, high = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return wide, high
