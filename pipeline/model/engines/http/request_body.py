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
from pipeline.job.spec import HttpEngine
from pipeline.types import Clip, Request, Turn

Part = dict[str, Any]
GUIDES = ("json_schema", "guided_json", "json_object", "none")
OF_SCHEMAS = re.compile(r"response_format|json|guided|structured|grammar|schema", re.I)
CONTROL = re.compile(r"<\|(?=\w+\|>)")
BROKEN = "<\u2060|"  # looks the same and is no token: a server would let a row close its turn with <|im_end|>
MICROSECONDS = 1_000_000  # frames as indices into a video of so many frames a second: times in whole numbers


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between servers."""

    model: str = ""
    guide: str = GUIDES[0]
    limit: str = "max_tokens"
    unresized: bool = False  # it can be told not to resize

    def after(self, refusal: str, *, guidable: bool) -> Dialect | None:
        """Another that the server may take, to judge by how it refused this one."""
        if "max_completion_tokens" in refusal and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if "mm_processor_kwargs" in refusal and self.unresized:  # vLLM without --trust-request-mm-kwargs
            return replace(self, unresized=False)
        if guidable and self.guide != GUIDES[-1] and OF_SCHEMAS.search(refusal):
            return replace(self, guide=GUIDES[GUIDES.index(self.guide) + 1])
        return None


def body(request: Request, settings: HttpEngine, dialect: Dialect, *, label: bool) -> bytes:
    sampling, counts = request.sampling, Counter[str]()
    said: dict[str, Any] = {
        "model": dialect.model,
        "messages": [message(turn, settings, counts if label else None) for turn in request.turns],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        dialect.limit: sampling.max_new_tokens + (sampling.thinking_tokens or 0),
    }
    if sampling.top_k:  # not of the protocol, but of most servers
        said["top_k"] = sampling.top_k
    if dialect.unresized and request.clips and settings.send == "pixels":
        said["mm_processor_kwargs"] = {"do_resize": False}
    if settings.video == "native" and any(clip.kind == "video" for clip in request.clips):
        said |= timing(request)
    if request.schema is not None:
        said |= guided(request.schema, dialect.guide, said["messages"])
    return json.dumps({name: value for name, value in {**said, **settings.body}.items() if value is not None}).encode()


def guided(schema: str, guide: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
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


def message(turn: Turn, settings: HttpEngine, counts: Counter[str] | None) -> dict[str, Any]:
    """Text alone is a plain string, which every server reads."""
    if all(isinstance(part, str) for part in turn.parts):
        words = "".join(part for part in turn.parts if isinstance(part, str))
        return {"role": turn.role, "content": CONTROL.sub(BROKEN, words)}
    parts = [piece for part in turn.parts for piece in spelled(part, settings, counts)]
    return {"role": turn.role, "content": parts}


def spelled(part: Any, settings: HttpEngine, counts: Counter[str] | None) -> Iterator[Part]:
    if not isinstance(part, Clip):
        yield {"type": "text", "text": CONTROL.sub(BROKEN, part)}
        return
    if counts is not None:
        counts[part.kind] += 1
        yield {"type": "text", "text": f"{'Picture' if part.kind == 'image' else 'Video'} {counts[part.kind]}: "}
    if part.kind == "video" and settings.video == "native":
        frames = ",".join(encoded(frame, settings.jpeg) for frame in part.pixels)
        yield {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    elif settings.send == "uri" and part.kind == "image" and part.whole_uri and is_web(part.uri):
        yield picture(part.uri)
    else:
        for index, frame in enumerate(part.pixels):
            if index < len(part.times):
                yield {"type": "text", "text": f"<{part.times[index]:.1f} seconds>"}
            kind = "jpeg" if settings.jpeg else "png"
            yield picture(f"data:image/{kind};base64,{encoded(frame, settings.jpeg)}")


def picture(url: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url}}


def is_web(uri: str) -> bool:
    """A page of a document is no picture at its URI."""
    return uri.startswith(("http://", "https://")) and "#page=" not in uri


def encoded(frame: Any, jpeg: int | None) -> str:
    """[3, height, width] -> base64 of a PNG, or of a JPEG whose colours are as fine as its light."""
    out = io.BytesIO()
    image = Image.fromarray(frame.transpose(1, 2, 0))
    if jpeg:
        image.save(out, "JPEG", quality=jpeg, subsampling=0)
    else:
        image.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")


def timing(request: Request) -> Mapping[str, Any]:
    """When the frames of a native video were, for vLLM: what it does not know it makes up."""
    videos = [clip for clip in request.clips if clip.kind == "video"]
    if len(videos) > 1:
        raise PromptError("media", "engine.video: native takes one video a row; leave it out to send frames")
    clip, count = videos[0], len(videos[0].pixels)
    times = [round(time * MICROSECONDS) for time in clip.times] or list(range(count))
    total = max(count, round(count / clip.fps * MICROSECONDS)) if clip.fps else count
    shown = {"fps": MICROSECONDS, "frames_indices": times, "total_num_frames": total}
    kept = {"do_sample_frames": False, "do_resize": False}
    return {"media_io_kwargs": {"video": shown}, "mm_processor_kwargs": kept}
