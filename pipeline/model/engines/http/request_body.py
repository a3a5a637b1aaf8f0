"""Request -> the body of a chat completion, in the dialect of the server.

What the server gets is what our own engine would see: prepared pixels as PNG in data URIs, frames with their times.
A server of the same model resizes them to the size they have, unless its pixel budget is smaller than the job's; one
that says it is vLLM is told not to resize at all, if it takes that (--trust-request-mm-kwargs). PNG costs three to ten
times the bytes of JPEG and not one bit of the picture; `jpeg` buys the bytes back where the wire is slow.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from pipeline.errors import PromptError
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.types import Clip, Request, Turn

ContentPart = dict[str, Any]
GUIDE_MODES = ("json_schema", "guided_json", "json_object", "none")
SCHEMA_REFUSAL = re.compile(r"response_format|json|guided|structured|grammar|schema", re.I)
SPECIAL_TOKEN_START = re.compile(r"<\|(?=\w+\|>)")
ESCAPED_TOKEN_START = (
    "<\u2060|"  # looks the same and is no token: a server would let a row close its turn with <|im_end|>
)
MICROSECONDS_PER_SECOND = 1_000_000  # frames as indices into a video of so many frames a second: times in whole numbers


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between servers."""

    model: str = ""
    guide: str = GUIDE_MODES[0]
    max_tokens_key: str = "max_tokens"
    can_skip_resize: bool = False  # it can be told not to resize

    def adapt_to(self, refusal: str, *, can_change_guide: bool) -> Dialect | None:
        """Another that the server may take, to judge by how it refused this one."""
        if "max_completion_tokens" in refusal and self.max_tokens_key == "max_tokens":
            return replace(self, max_tokens_key="max_completion_tokens")
        if "mm_processor_kwargs" in refusal and self.can_skip_resize:  # vLLM without --trust-request-mm-kwargs
            return replace(self, can_skip_resize=False)
        if can_change_guide and self.guide != GUIDE_MODES[-1] and SCHEMA_REFUSAL.search(refusal):
            return replace(self, guide=GUIDE_MODES[GUIDE_MODES.index(self.guide) + 1])
        return None


def build_body(request: Request, settings: HttpSettings, dialect: Dialect, *, add_vision_id: bool) -> bytes:
    sampling, counts = request.sampling, Counter[str]()
    said: dict[str, Any] = {
        "model": dialect.model,
        "messages": [build_message(turn, settings, counts if add_vision_id else None) for turn in request.turns],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        dialect.max_tokens_key: sampling.max_new_tokens + (sampling.max_thinking_tokens or 0),
    }
    if sampling.top_k:  # not of the protocol, but of most servers
        said["top_k"] = sampling.top_k
    if dialect.can_skip_resize and request.clips and settings.send == "pixels":
        said["mm_processor_kwargs"] = {"do_resize": False}
    if settings.video == "native" and any(clip.kind == "video" for clip in request.clips):
        said |= build_video_timing(request)
    if request.schema_text is not None:
        said |= build_guide_fields(request.schema_text, dialect.guide, said["messages"])
    return json.dumps({name: value for name, value in {**said, **settings.body}.items() if value is not None}).encode()


def build_guide_fields(schema: str, guide: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema as the server takes it; where it takes none, the model reads it at the end of the question."""
    if guide == "json_schema":
        return {"response_format": {"type": guide, "json_schema": {"name": "answer", "schema": json.loads(schema)}}}
    if guide == "guided_json":
        return {"guided_json": json.loads(schema)}
    last = next(message for message in reversed(messages) if message["role"] == "user")
    words = {"type": "text", "text": f"Answer with JSON only, of this JSON Schema: {schema}"}
    content = last["content"]
    last["content"] = [*([{"type": "text", "text": content}] if isinstance(content, str) else content), words]
    return {"response_format": {"type": "json_object"}} if guide == "json_object" else {}


def build_message(turn: Turn, settings: HttpSettings, media_counts: Counter[str] | None) -> dict[str, Any]:
    """Text alone is a plain string, which every server reads."""
    if all(isinstance(part, str) for part in turn.parts):
        words = "".join(part for part in turn.parts if isinstance(part, str))
        return {"role": turn.role, "content": SPECIAL_TOKEN_START.sub(ESCAPED_TOKEN_START, words)}
    parts = [piece for part in turn.parts for piece in build_parts(part, settings, media_counts)]
    return {"role": turn.role, "content": parts}


def build_parts(part: Any, settings: HttpSettings, media_counts: Counter[str] | None) -> Iterator[ContentPart]:
    if not isinstance(part, Clip):
        yield {"type": "text", "text": SPECIAL_TOKEN_START.sub(ESCAPED_TOKEN_START, part)}
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
            kind = "jpeg" if settings.jpeg else "png"
            yield build_image_part(f"data:image/{kind};base64,{encode_frame(frame, settings.jpeg)}")


def build_image_part(url: str) -> ContentPart:
    return {"type": "image_url", "image_url": {"url": url}}


def is_web_image(uri: str) -> bool:
    """A page of a document is no picture at its URI."""
    return uri.startswith(("http://", "https://")) and "#page=" not in uri


def encode_frame(frame: Any, jpeg_quality: int | None) -> str:
    """[3, height, width] -> base64 of a PNG, or of a JPEG whose colours are as fine as its light."""
    out = io.BytesIO()
    image = Image.fromarray(frame.transpose(1, 2, 0))
    if jpeg_quality:
        image.save(out, "JPEG", quality=jpeg_quality, subsampling=0)
    else:
        image.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")


def build_video_timing(request: Request) -> Mapping[str, Any]:
    """When the frames of a native video were, for vLLM: what it does not know it makes up."""
    videos = [clip for clip in request.clips if clip.kind == "video"]
    if len(videos) > 1:
        raise PromptError("media", "engine.video: native takes one video a row; leave it out to send frames")
    clip, count = videos[0], len(videos[0].pixels)
    times = [round(time * MICROSECONDS_PER_SECOND) for time in clip.times] or list(range(count))
    total = max(count, round(count / clip.fps * MICROSECONDS_PER_SECOND)) if clip.fps else count
    shown = {"fps": MICROSECONDS_PER_SECOND, "frames_indices": times, "total_num_frames": total}
    kept = {"do_sample_frames": False, "do_resize": False}
    return {"media_io_kwargs": {"video": shown}, "mm_processor_kwargs": kept}
