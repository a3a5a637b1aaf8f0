"""Request -> the prompt as vLLM takes it, and whether vLLM read what was prepared.

Ids with one pad for each medium, which vLLM replaces, and the prepared frames, which it is told not to resize or
sample. Pixels go over as they are; how a checkpoint spells a medium out is vLLM's to know, so it is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import GenerateError
from pipeline.model.families.qwen import QwenFamily, tokenize_pieces
from pipeline.model.prompt import SpecialToken, build_prompt_pieces
from pipeline.types import Clip, Request


def build_prompt(request: Request, family: QwenFamily) -> dict[str, Any]:
    """Videos as arrays of [frames, height, width, 3], pictures as Pillow has them: an array's axes would be guessed."""
    from PIL import Image

    frames = [(clip, clip.pixels.transpose(0, 2, 3, 1)) for clip in request.clips]
    images = [Image.fromarray(pixels[0]) for clip, pixels in frames if clip.kind == "image"]
    videos = [(pixels, build_video_metadata(clip)) for clip, pixels in frames if clip.kind == "video"]
    (ids,) = tokenize_pieces(
        build_placeholder_pieces(request, family), family.tokenizer
    )  # no medium cuts it in two: each is a pad
    said: dict[str, Any] = {"prompt_token_ids": ids}
    if frames:
        said["multi_modal_data"] = ({"image": images} if images else {}) | ({"video": videos} if videos else {})
        said["mm_processor_kwargs"] = {"do_resize": False} | ({"do_sample_frames": False} if videos else {})
    return said


def build_placeholder_pieces(request: Request, family: QwenFamily) -> Iterator[str | int]:
    for piece in build_prompt_pieces(request.turns, family.chat_format, add_vision_id=family.add_vision_id):
        if isinstance(piece, Clip):
            yield from get_placeholder(piece, family)
        else:
            yield family.special_tokens[piece] if isinstance(piece, SpecialToken) else piece


def get_placeholder(clip: Clip, family: QwenFamily) -> list[int]:
    """What vLLM replaces; times and markers of Qwen3-VL's video are part of that."""
    if clip.kind == "video" and family.time_origin == "source":
        return [family.video_token]
    pad = family.image_token if clip.kind == "image" else family.video_token
    return [family.vision_start, pad, family.vision_end]


def build_video_metadata(clip: Clip) -> dict[str, Any]:
    """What vLLM is told of a video's clock: a frame at each of its times, in all as many as make its rate."""
    times = list(clip.times) or [index / clip.fps for index in range(len(clip.pixels))]
    total = len(times) / clip.fps
    return {
        "fps": 1.0,
        "frames_indices": times,
        "total_num_frames": total,
        "duration": total,
        "do_sample_frames": False,
    }


def check_prompt_tokens(request: Request, vllm_tokens: Sequence[int], family: QwenFamily) -> None:
    """The same text and as many vision tokens, or its boxes would be those of another picture."""
    ours, decode = request.input_ids.tolist(), family.tokenizer.decode
    same = vllm_tokens == ours or decode(vllm_tokens, skip_special_tokens=False) == decode(
        ours, skip_special_tokens=False
    )
    if not same:
        raise GenerateError(
            "prompt", f"vLLM read {len(vllm_tokens):,} prompt tokens where {len(ours):,} were prepared, or other ones"
        )
