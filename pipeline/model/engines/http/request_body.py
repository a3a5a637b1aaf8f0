"""Converts a Request to the body of a chat completion, in the dialect of the server.

The server gets what our own engine would see: prepared pixels as PNG in data URIs, and frames with their times. A
server of the same model resizes a picture to the size that it already has, unless its pixel budget is smaller than the
job's. A server that calls itself vLLM is told not to resize, if it allows that (--trust-request-mm-kwargs). PNG takes
three to ten times the bytes of JPEG and loses nothing; `engine.jpeg` saves the bytes where the network is slow.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from pipeline.errors import PromptError
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.engines.video_timing import compute_duration, compute_frame_times
from pipeline.types import Clip, Request, Turn

ContentPart = dict[str, Any]
SCHEMA_GUIDES = ("json_schema", "guided_json")  # the server follows the schema
GUIDE_MODES = (*SCHEMA_GUIDES, "json_object", "none")
SCHEMA_REFUSAL = re.compile(r"response_format|json|guided|structured|grammar|schema", re.I)
SPECIAL_TOKEN_START = re.compile(r"<\|(?=\w+\|>)")
ESCAPED_TOKEN_START = "<\u2060|"  # looks the same, but cannot close the turn as <|im_end|> would
VIDEO_FPS = 1_000_000  # a native video has a frame every microsecond, so that times are whole frame numbers


@dataclass(frozen=True, slots=True)
class Dialect:
    """The differences between servers of the protocol."""

    model: str = ""
    guide: str = GUIDE_MODES[0]
    max_tokens_key: str = "max_tokens"
    can_skip_resize: bool = False

    def adapt_to(self, refusal: str, *, can_change_guide: bool) -> Dialect | None:
        """Another dialect to try, if the refusal names something that this dialect uses."""
        if "max_completion_tokens" in refusal and self.max_tokens_key == "max_tokens":
            return replace(self, max_tokens_key="max_completion_tokens")
        if "mm_processor_kwargs" in refusal and self.can_skip_resize:  # vLLM without --trust-request-mm-kwargs
            return replace(self, can_skip_resize=False)
        if can_change_guide and self.guide != GUIDE_MODES[-1] and SCHEMA_REFUSAL.search(refusal):
            return replace(self, guide=GUIDE_MODES[GUIDE_MODES.index(self.guide) + 1])
        return None


def build_body(
    request: Request,
    settings: HttpSettings,
    dialect: Dialect,
    *,
    add_vision_id: bool,
    template_options: Mapping[str, bool],
    extra_fields: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    sampling, media_counts = request.sampling, Counter[str]() if add_vision_id else None
    body: dict[str, Any] = {
        "model": dialect.model,
        "messages": [build_message(turn, settings, media_counts) for turn in request.turns],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        dialect.max_tokens_key: sampling.max_new_tokens + (sampling.max_thinking_tokens or 0),
    }
    if sampling.top_k:  # not part of the protocol, but most servers know it
        body["top_k"] = sampling.top_k
    if template_options:  # not part of the protocol; vLLM and SGLang know it
        body["chat_template_kwargs"] = dict(template_options)
    if dialect.can_skip_resize and request.clips and settings.send == "pixels":
        body["mm_processor_kwargs"] = {"do_resize": False}
    if settings.video == "native" and any(clip.kind == "video" for clip in request.clips):
        body |= build_video_fields(request)
    if request.schema_text is not None:
        body |= build_guide_fields(request.schema_text, dialect.guide, body["messages"])
    body |= extra_fields
    body |= settings.body
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def build_guide_fields(schema: str, guide: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema as the server accepts it. Without `json_schema` and `guided_json` it is appended to the question."""
    if guide == "json_schema":
        return {"response_format": {"type": guide, "json_schema": {"name": "answer", "schema": json.loads(schema)}}}
    if guide == "guided_json":
        return {"guided_json": json.loads(schema)}
    last_message = next(message for message in reversed(messages) if message["role"] == "user")
    content = last_message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    instruction = {"type": "text", "text": f"Answer with JSON only, of this JSON Schema: {schema}"}
    last_message["content"] = [*parts, instruction]
    return {"response_format": {"type": "json_object"}} if guide == "json_object" else {}


def build_message(turn: Turn, settings: HttpSettings, media_counts: Counter[str] | None) -> dict[str, Any]:
    """A turn without media is a plain string, which every server understands."""
    texts = [part for part in turn.parts if isinstance(part, str)]
    if len(texts) == len(turn.parts):
        return {"role": turn.role, "content": escape_special_tokens("".join(texts))}
    return {
        "role": turn.role,
        "content": [piece for part in turn.parts for piece in build_parts(part, settings, media_counts)],
    }


def build_parts(part: Any, settings: HttpSettings, media_counts: Counter[str] | None) -> Iterator[ContentPart]:
    if not isinstance(part, Clip):
        yield {"type": "text", "text": escape_special_tokens(part)}
        return
    if media_counts is not None:
        media_counts[part.kind] += 1
        yield {"type": "text", "text": f"{'Picture' if part.kind == 'image' else 'Video'} {media_counts[part.kind]}: "}
    if part.kind == "video" and settings.video == "native":
        frames = ",".join(encode_frame(frame, settings.jpeg) for frame in part.pixels)
        yield {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    elif settings.send == "uri" and part.kind == "image" and part.has_complete_uri and is_web_image(part.uri):
        yield build_image_part(part.uri)
    else:
        for index, frame in enumerate(part.pixels):
            if index < len(part.times):
                yield {"type": "text", "text": f"<{part.times[index]:.1f} seconds>"}
            image_format = "jpeg" if settings.jpeg else "png"
            yield build_image_part(f"data:image/{image_format};base64,{encode_frame(frame, settings.jpeg)}")


def escape_special_tokens(text: str) -> str:
    return SPECIAL_TOKEN_START.sub(ESCAPED_TOKEN_START, text)


def build_image_part(url: str) -> ContentPart:
    return {"type": "image_url", "image_url": {"url": url}}


def is_web_image(uri: str) -> bool:
    """The URI of a page of a document names the document, not a picture."""
    return uri.startswith(("http://", "https://")) and "#page=" not in uri


def encode_frame(frame: Any, jpeg_quality: int | None) -> str:
    """[3, height, width] -> base64 of a PNG, or of a JPEG without chroma subsampling."""
    out = io.BytesIO()
    image = Image.fromarray(frame.transpose(1, 2, 0))
    if jpeg_quality:
        image.save(out, "JPEG", quality=jpeg_quality, subsampling=0)
    else:
        image.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")


def build_video_fields(request: Request) -> Mapping[str, Any]:
    """The times of a native video's frames, for vLLM, which would otherwise assume a rate."""
    videos = [clip for clip in request.clips if clip.kind == "video"]
    if len(videos) > 1:
        raise PromptError("media", "engine.video: native takes one video a row; leave it out to send frames")
    (clip,) = videos
    timing = {
        "fps": VIDEO_FPS,
        "frames_indices": [round(time * VIDEO_FPS) for time in compute_frame_times(clip)],
        "total_num_frames": max(len(clip.pixels), round(compute_duration(clip) * VIDEO_FPS)),
    }
    return {
        "media_io_kwargs": {"video": timing},
        "mm_processor_kwargs": {"do_sample_frames": False, "do_resize": False},
    }
