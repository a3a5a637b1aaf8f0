"""Converts a Request to vLLM's prompt, and checks that vLLM read what was prepared.

The prompt is token ids with one pad token per medium, which vLLM expands, and the prepared frames, which vLLM must not
resize or sample again. How a medium is expanded is vLLM's business, so its tokens are compared with ours afterwards.

Every medium goes by a key of its pixels, by which vLLM's caches know it. Rows that show the same medium share its
processed pixels, its features, and the keys and values of a prompt that begins alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import GenerateError
from pipeline.model.engines.pixel_key import compute_pixel_key
from pipeline.model.engines.video_timing import compute_duration, compute_frame_times
from pipeline.model.families.base import Family
from pipeline.model.row_encoders.choice_encoder import count_shared
from pipeline.types import Clip, Request


def build_prompt(request: Request, family: Family) -> dict[str, Any]:
    from PIL import Image

    frames = [(clip, clip.pixels.transpose(0, 2, 3, 1)) for clip in request.clips]
    media = {  # as a picture, because an array is ambiguous
        "image": [Image.fromarray(pixels[0]) for clip, pixels in frames if clip.kind == "image"],
        "video": [(pixels, build_video_metadata(clip)) for clip, pixels in frames if clip.kind == "video"],
    }
    prompt: dict[str, Any] = {"prompt_token_ids": encode_prompt(request, family)}
    if frames:
        kinds = [kind for kind, items in media.items() if items]
        prompt["multi_modal_data"] = {kind: media[kind] for kind in kinds}
        prompt["multi_modal_uuids"] = {
            kind: [build_media_key(clip) for clip in request.clips if clip.kind == kind] for kind in kinds
        }
        prompt["mm_processor_kwargs"] = {"do_resize": False} | ({"do_sample_frames": False} if media["video"] else {})
    return prompt


def build_media_key(clip: Clip) -> str:
    """The prompt spells out the times of a video, so frames at other times are another video."""
    return repr((clip.kind, compute_pixel_key(clip), compute_frame_times(clip) if clip.kind == "video" else ()))


def build_video_metadata(clip: Clip) -> dict[str, Any]:
    """At one frame per second, the number of a frame is its time."""
    duration = compute_duration(clip)
    return {
        "fps": 1.0,
        "frames_indices": compute_frame_times(clip),
        "total_num_frames": duration,
        "duration": duration,
        "do_sample_frames": False,
    }


def encode_prompt(request: Request, family: Family) -> list[int]:
    """The request's tokens, with one for each medium. They may end otherwise than the chat alone does: with what all
    continuations begin with, or with what ends a text whose vector is wanted. Media never stand behind that place."""
    tokens = family.encode_placeholders(request.turns)
    if not (request.continuations or request.pooling):
        return tokens
    chat_tokens, own_tokens = family.encode_turns(request.turns).input_ids.tolist(), request.input_ids.tolist()
    shared = count_shared([chat_tokens, own_tokens])
    return [*tokens[: len(tokens) - (len(chat_tokens) - shared)], *own_tokens[shared:]]


def check_prompt_tokens(our_tokens: Sequence[int], output: Any, family: Family) -> None:
    """A different text or number of vision tokens would mean boxes of a different picture."""
    vllm_tokens = output.prompt_token_ids
    if vllm_tokens == our_tokens:
        return
    ours, theirs = (family.tokenizer.decode(ids, skip_special_tokens=False) for ids in (our_tokens, vllm_tokens))
    if ours != theirs:
        raise GenerateError(
            "prompt",
            f"vLLM read {len(vllm_tokens):,} prompt tokens where {len(our_tokens):,} were prepared, or different ones",
        )
