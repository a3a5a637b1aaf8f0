"""Any vision-language model that vLLM or a server of the OpenAI protocol runs: that program makes the prompt.

Pictures keep their shape and every size up to the budget, and a video is shown as frames with their times. Nothing of a
checkpoint is read here, so tokens are estimated, and the job says how the model writes boxes (`model.coordinates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.model.families.base import CheckpointFiles, EncodedPrompt
from pipeline.model.families.qwen import check_aspect_ratio, compute_area_bounds, get_requested_size, select_evenly
from pipeline.types import Clip, MediaOptions, Size, Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKEN_SIDE = 28  # pixels; most models take one token for 700 to 2,000 pixels
BYTES_PER_TOKEN = 4  # of text
FRAME_TEXT_TOKENS = 8  # the time of a frame
MAX_IMAGE_PIXELS, MAX_FRAME_PIXELS, MAX_VIDEO_PIXELS = 1280 * 28 * 28, 768 * 28 * 28, 128_000 * 28 * 28


class GenericFamily:
    knows_model = False
    reasoning_parser = ""  # the job names it in `engine`
    patch_size, merge_size, temporal_patch_size = TOKEN_SIDE, 1, 1
    coordinates = None
    time_origin: Literal["source"] = "source"
    vector_widths: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        files: CheckpointFiles,
        tokenizer: Tokenizer,
        *,
        add_vision_id: bool = False,
        thinking: bool | None = None,
        closes_thinking: bool = False,
    ):
        self.add_vision_id = add_vision_id
        self.tokenizer = tokenizer
        self.thinking = bool(thinking)
        self.template_options = {} if thinking is None else {"enable_thinking": thinking}

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        return fit_shape(source, options, MAX_IMAGE_PIXELS)

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        return select_evenly(frame_range, fps, options)

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size:
        share = (options.total_pixels or MAX_VIDEO_PIXELS) // frame_count
        max_pixels = max(min(share, options.max_pixels or MAX_FRAME_PIXELS), options.min_pixels or 1)
        return fit_shape(source, replace(options, max_pixels=max_pixels), max_pixels)

    def count_vision_tokens(self, size: Size, frame_count: int = 1) -> int:
        return frame_count * math.ceil(size[0] * size[1] / TOKEN_SIDE**2)

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        return self.count_vision_tokens(size, max(1, len(times))) + FRAME_TEXT_TOKENS * len(times)

    def encode_turns(self, turns: Sequence[Turn]) -> EncodedPrompt:
        text_tokens = math.ceil(sum(map(count_text_bytes, turns)) / BYTES_PER_TOKEN)
        clips = list_clips(turns)
        return EncodedPrompt(
            np.zeros(0, np.int32),
            np.zeros((1, 0), np.int32),
            sum(self.count_vision_tokens(clip.size, len(clip.pixels)) for clip in clips),
            text_tokens + sum(self.count_media_tokens(clip.size, clip.times) for clip in clips),
        )

    def check_length(self, encoded: EncodedPrompt, max_new_tokens: int) -> None:
        """The program that runs the model refuses what is too long for it."""


def fit_shape(source: Size, options: MediaOptions, default_max: int) -> Size:
    """The source's own size where it is within the bounds; else the nearest that is, of the same shape."""
    if requested := get_requested_size(options):
        return requested
    width, height = check_aspect_ratio(source)
    min_area, max_area = compute_area_bounds(options, 1, default_max)
    area = min(max(width * height, min_area), max_area)
    scale, round_side = math.sqrt(area / (width * height)), math.floor if area == max_area else math.ceil
    return (width, height) if scale == 1 else (max(1, round_side(width * scale)), max(1, round_side(height * scale)))


def list_clips(turns: Sequence[Turn]) -> list[Clip]:
    return [part for turn in turns for part in turn.parts if isinstance(part, Clip)]


def count_text_bytes(turn: Turn) -> int:
    return sum(len(part.encode()) for part in turn.parts if isinstance(part, str))
