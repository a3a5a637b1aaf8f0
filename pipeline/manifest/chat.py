"""Parse a chat, as lists or as JSON text, into Turns. Parts may be written as Qwen or as OpenAI write them.

A part without a source takes the next medium of the row's media columns; every medium must be taken by some part.
Parquet gives each part the keys of all parts, so a key without a value means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipeline.errors import ReadError
from pipeline.manifest.media_cells import check_text, describe_value, parse_options, parse_source
from pipeline.types import MediaOptions, MediaRef, Turn

ERROR_KIND = "messages"
ROLES = ("system", "user", "assistant")
PART_TYPES: dict[str, Literal["text", "image", "video"]] = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
SOURCE_KEYS = {
    "image": ("image", "image_url", "url", "path", "bytes"),
    "video": ("video", "video_url", "url", "path", "bytes"),
}


def parse_turns(
    value: Any, column_media: Sequence[MediaRef], *, row_options: MediaOptions, base_folder: str, column: str
) -> tuple[Turn, ...]:
    """The turns of one chat, or a ReadError that names the column and the message."""
    unused_media = iter(column_media)
    turns = []
    for number, message in enumerate(parse_messages(value, column), 1):
        location = f"column {column}, message {number}"
        if not isinstance(message, dict):
            raise ReadError(ERROR_KIND, f"{location} is {describe_value(message)}; give {{role, content}}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            problem = f"role is {describe_value(role)}; it must be one of {', '.join(ROLES)}"
            raise ReadError(ERROR_KIND, f"{location}: {problem}")
        parts = parse_parts(content, unused_media, row_options=row_options, base_folder=base_folder, location=location)
        turns.append(Turn(role, tuple(parts)))
    if turns[-1].role != "user":
        problem = f"ends with a message of the {turns[-1].role}; end it with the user's"
        raise ReadError(ERROR_KIND, f"column {column} {problem}")
    if unused_count := len(list(unused_media)):
        problem = f"the media columns hold {unused_count} more than the chat has parts for; add parts or drop them"
        raise ReadError(ERROR_KIND, f"column {column}: {problem}")
    return tuple(turns)


def parse_messages(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ReadError(ERROR_KIND, f"column {column} is not JSON text of a list of messages: {error}") from error
    if not isinstance(value, list) or not value:
        raise ReadError(
            ERROR_KIND,
            f"column {column} holds {describe_value(value)}; give a list of at least one {{role, content}}",
        )
    return value


def parse_parts(
    content: Any, unused_media: Iterator[MediaRef], *, row_options: MediaOptions, base_folder: str, location: str
) -> Iterator[str | MediaRef]:
    if content is None or isinstance(content, str):
        if content:
            yield check_text(content, ERROR_KIND, location)
        return
    if not isinstance(content, list):
        raise ReadError(ERROR_KIND, f"{location}: content is {describe_value(content)}; give text or a list of parts")
    for number, part in enumerate(content, 1):
        here = f"{location}, part {number}"
        if isinstance(part, str):
            yield check_text(part, ERROR_KIND, here)
            continue
        if not isinstance(part, dict):
            raise ReadError(ERROR_KIND, f"{here} is {describe_value(part)}; give an object with a type")
        part = {key: field for key, field in part.items() if field is not None}
        kind = parse_part_kind(part, here)
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise ReadError(ERROR_KIND, f"{here}: text is {describe_value(part.get('text'))}; give a string")
            yield check_text(part["text"], ERROR_KIND, here)
        else:
            yield parse_media_part(
                part, kind, unused_media, row_options=row_options, base_folder=base_folder, location=here
            )


def parse_part_kind(part: dict[str, Any], location: str) -> Literal["text", "image", "video"]:
    """The type of a part, or without one the first key that names a type."""
    named = part["type"] if "type" in part else next((key for key in part if key in PART_TYPES), None)
    if isinstance(named, str) and named in PART_TYPES:
        return PART_TYPES[named]
    known = "text, image, video, image_url, video_url, input_image"
    raise ReadError(ERROR_KIND, f"{location}: type is {describe_value(part.get('type'))}; it must be one of {known}")


def parse_media_part(
    part: dict[str, Any],
    kind: Literal["image", "video"],
    unused_media: Iterator[MediaRef],
    *,
    row_options: MediaOptions,
    base_folder: str,
    location: str,
) -> MediaRef:
    """The part's own source, or the next of the media columns."""
    options = parse_options(part, ERROR_KIND, f"{location}: ").with_defaults(row_options)
    for name in SOURCE_KEYS[kind]:
        value = part.get(name)
        if kind == "video" and isinstance(value, list):
            frames = [parse_source(frame, base_folder, ERROR_KIND, f"{location}: {name}") for frame in value]
            if not frames or None in frames:
                raise ReadError(ERROR_KIND, f"{location}: {name} lists frames, and one is missing; give a URI for each")
            return MediaRef(tuple(frame for frame in frames if frame is not None), kind, options)
        source = parse_source(value, base_folder, ERROR_KIND, f"{location}: {name}")
        if source is not None:
            return MediaRef(source, kind, options)
    media_ref = next(unused_media, None)
    if media_ref is None:
        raise ReadError(ERROR_KIND, f"{location} has no source and the media columns hold no more; give {kind}: URI")
    return replace(media_ref, kind=kind, options=options)
