"""A cell with a chat, as lists or as JSON text -> Turns. Parts may be spelled as Qwen or as OpenAI spell them.

A part without a source takes the next of the row's media columns; in the end all of them are taken.
Parquet gives every part the keys of all parts, so that a key without a value says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipeline.errors import ReadError
from pipeline.manifest.media_cells import ask_of, named, source_of, text_of
from pipeline.types import Ask, Medium, Turn

KIND = "messages"
ROLES = ("system", "user", "assistant")
TEXTS = ("text", "input_text", "output_text")
IMAGES = ("image", "image_url", "input_image")
VIDEOS = ("video", "video_url", "input_video")
SOURCES = {
    "image": ("image", "image_url", "url", "path", "bytes"),
    "video": ("video", "video_url", "url", "path", "bytes"),
}


def turns(value: Any, media: Sequence[Medium], *, ask: Ask, base: str, column: str) -> tuple[Turn, ...]:
    """The turns of one chat, or a ReadError that names the column and the message."""
    left = iter(media)
    out = []
    for index, message in enumerate(messages(value, column)):
        where = f"column {column}, message {index + 1}"
        if not isinstance(message, dict):
            raise ReadError(KIND, f"{where} is {named(message)}; give {{role, content}}")
        role = message.get("role")
        if role not in ROLES:
            raise ReadError(KIND, f"{where}: role is {named(role)}; it must be one of {', '.join(ROLES)}")
        out.append(Turn(role, tuple(parts(message.get("content"), left, ask=ask, base=base, where=where))))
    if out[-1].role != "user":
        raise ReadError(KIND, f"column {column} ends with a message of the {out[-1].role}; end it with the user's")
    if over := len(list(left)):
        raise ReadError(
            KIND,
            f"column {column}: the media columns hold {over} more than the chat has parts for; add parts or drop them",
        )
    return tuple(out)


def messages(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ReadError(KIND, f"column {column} is not JSON text of a list of messages: {error}") from error
    if not isinstance(value, list) or not value:
        raise ReadError(
            KIND, f"column {column} holds {named(value)}; give a list of {{role, content}} with one at least"
        )
    return value


def parts(content: Any, left: Iterator[Medium], *, ask: Ask, base: str, where: str) -> Iterator[str | Medium]:
    """The parts of one message's content."""
    if content is None or isinstance(content, str):
        if content:
            yield text_of(content, KIND, where)
        return
    if not isinstance(content, list):
        raise ReadError(KIND, f"{where}: content is {named(content)}; give text or a list of parts")
    for index, part in enumerate(content):
        here = f"{where}, part {index + 1}"
        if isinstance(part, str):
            yield text_of(part, KIND, here)
            continue
        if not isinstance(part, dict):
            raise ReadError(KIND, f"{here} is {named(part)}; give an object with a type")
        said = {key: each for key, each in part.items() if each is not None}
        kind = kind_of(said, here)
        if kind == "text":
            if not isinstance(said.get("text"), str):
                raise ReadError(KIND, f"{here}: text is {named(said.get('text'))}; give a string")
            yield text_of(said["text"], KIND, here)
        else:
            yield medium(said, kind, left, ask=ask, base=base, where=here)


def kind_of(said: dict[str, Any], where: str) -> Literal["text", "image", "video"]:
    """What a part is: by its type, or without one by the key it has."""
    given = [said["type"]] if "type" in said else [key for key in said if key in (*TEXTS, *IMAGES, *VIDEOS)]
    for name in given[:1]:
        if name in TEXTS:
            return "text"
        if name in IMAGES:
            return "image"
        if name in VIDEOS:
            return "video"
    known = "text, image, video, image_url, video_url, input_image"
    raise ReadError(KIND, f"{where}: type is {named(said.get('type'))}; it must be one of {known}")


def medium(
    said: dict[str, Any], kind: Literal["image", "video"], left: Iterator[Medium], *, ask: Ask, base: str, where: str
) -> Medium:
    """What one part shows: its own source, or the next of the media columns."""
    wish = ask_of(said, KIND, f"{where}: ").over(ask)
    for name in SOURCES[kind]:
        value = said.get(name)
        if kind == "video" and isinstance(value, list):
            frames = [source_of(each, base, KIND, f"{where}: {name}") for each in value]
            if not frames or None in frames:
                raise ReadError(KIND, f"{where}: {name} lists frames, and one is missing; give a URI for each")
            return Medium(tuple(frame for frame in frames if frame is not None), kind, wish)
        source = source_of(value, base, KIND, f"{where}: {name}")
        if source is not None:
            return Medium(source, kind, wish)
    following = next(left, None)
    if following is None:
        raise ReadError(KIND, f"{where} has no source and the media columns hold no more; give {kind}: URI")
    return replace(following, kind=kind, ask=wish)
