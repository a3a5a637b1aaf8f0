"""Request -> the prompt as vLLM takes it, and whether vLLM read what was prepared.

Ids with one pad for each medium, which vLLM replaces, and the prepared frames, which it is told not to resize or
sample. Pixels go over as they are; how a checkpoint spells a medium out is vLLM's to know, so it is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import GenerateError
from pipeline.model.families.base import Family
from pipeline.types import Clip, Request


def build_prompt(request: Request, family: Family) -> dict[str, Any]:
    """Videos as arrays of [frames, height, width, 3], pictures as Pillow has them: an array's axes would be guessed."""
    from PIL import Image

    frames = [(clip, clip.pixels.transpose(0, 2, 3, 1)) for clip in request.clips]
    images = [Image.fromarray(pixels[0]) for clip, pixels in frames if clip.kind == "image"]
    videos = [(pixels, build_video_metadata(clip)) for clip, pixels in frames if clip.kind == "video"]
    said: dict[str, Any] = {"prompt_token_ids": family.encode_placeholders(request.turns)}
    if frames:
        said["multi_modal_data"] = ({"image": images} if images else {}) | ({"video": videos} if videos else {})
        said["mm_processor_kwargs"] = {"do_resize": False} | ({"do_sample_frames": False} if videos else {})
    return said


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


def check_prompt_tokens(request: Request, vllm_tokens: Sequence[int], family: Family) -> None:
    """The same text and as many vision tokens, or its boxes would be those of another picture."""
    ours, decode = request.input_ids.tolist(), family.tokenizer.decode
    same = vllm_tokens == ours or decode(vllm_tokens, skip_special_tokens=False) == decode(
        ours, skip_special_tokens=False
    )
    if not same:
        raise GenerateError(
            "prompt", f"vLLM read {len(vllm_tokens):,} prompt tokens where {len(ours):,} were prepared, or other ones"
        )
