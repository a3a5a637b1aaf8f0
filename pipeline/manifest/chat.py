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
from pipeline.manifest.media_cells import check_text, describe_value, parse_options, parse_source
from pipeline.types import MediaOptions, MediaRef, Turn

ERROR_KIND = "messages"
ROLES = ("system", "user", "assistant")
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
VIDEO_TYPES = ("video", "video_url", "input_video")
SOURCE_KEYS = {
    "image": ("image", "image_url", "url", "path", "bytes"),
    "video": ("video", "video_url", "url", "path", "bytes"),
}


def parse_turns(
    value: Any, column_media: Sequence[MediaRef], *, row_options: MediaOptions, base_folder: str, column: str
) -> tuple[Turn, ...]:
    """The turns of one chat, or a ReadError that names the column and the message."""
    left = iter(column_media)
    out = []
    for index, message in enumerate(parse_messages(value, column)):
        where = f"column {column}, message {index + 1}"
        if not isinstance(message, dict):
            raise ReadError(ERROR_KIND, f"{where} is {describe_value(message)}; give {{role, content}}")
        role = message.get("role")
        if role not in ROLES:
            raise ReadError(
                ERROR_KIND, f"{where}: role is {describe_value(role)}; it must be one of {', '.join(ROLES)}"
            )
        out.append(
            Turn(
                role,
                tuple(
                    parse_parts(
                        message.get("content"), left, row_options=row_options, base_folder=base_folder, location=where
                    )
                ),
            )
        )
    if out[-1].role != "user":
        raise ReadError(
            ERROR_KIND, f"column {column} ends with a message of the {out[-1].role}; end it with the user's"
        )
    if over := len(list(left)):
        raise ReadError(
            ERROR_KIND,
            f"column {column}: the media columns hold {over} more than the chat has parts for; add parts or drop them",
        )
    return tuple(out)


def parse_messages(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ReadError(ERROR_KIND, f"column {column} is not JSON text of a list of messages: {error}") from error
    if not isinstance(value, list) or not value:
        raise ReadError(
            ERROR_KIND,
            f"column {column} holds {describe_value(value)}; give a list of {{role, content}} with one at least",
        )
    return value


def parse_parts(
    content: Any, unused_media: Iterator[MediaRef], *, row_options: MediaOptions, base_folder: str, location: str
) -> Iterator[str | MediaRef]:
    """The parts of one message's content."""
    if content is None or isinstance(content, str):
        if content:
            yield check_text(content, ERROR_KIND, location)
        return
    if not isinstance(content, list):
        raise ReadError(ERROR_KIND, f"{location}: content is {describe_value(content)}; give text or a list of parts")
    for index, part in enumerate(content):
        here = f"{location}, part {index + 1}"
        if isinstance(part, str):
            yield check_text(part, ERROR_KIND, here)
            continue
        if not isinstance(part, dict):
            raise ReadError(ERROR_KIND, f"{here} is {describe_value(part)}; give an object with a type")
        said = {key: each for key, each in part.items() if each is not None}
        kind = parse_part_kind(said, here)
        if kind == "text":
            if not isinstance(said.get("text"), str):
                raise ReadError(ERROR_KIND, f"{here}: text is {describe_value(said.get('text'))}; give a string")
            yield check_text(said["text"], ERROR_KIND, here)
        else:
            yield parse_media_part(
                said, kind, unused_media, row_options=row_options, base_folder=base_folder, location=here
            )


def parse_part_kind(part: dict[str, Any], location: str) -> Literal["text", "image", "video"]:
    """What a part is: by its type, or without one by the key it has."""
    given = (
        [part["type"]] if "type" in part else [key for key in part if key in (*TEXT_TYPES, *IMAGE_TYPES, *VIDEO_TYPES)]
    )
    for name in given[:1]:
        if name in TEXT_TYPES:
            return "text"
        if name in IMAGE_TYPES:
            return "image"
        if name in VIDEO_TYPES:
            return "video"
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
    """What one part shows: its own source, or the next of the media columns."""
    wish = parse_options(part, ERROR_KIND, f"{location}: ").with_defaults(row_options)
    for name in SOURCE_KEYS[kind]:
        value = part.get(name)
        if kind == "video" and isinstance(value, list):
            frames = [parse_source(each, base_folder, ERROR_KIND, f"{location}: {name}") for each in value]
            if not frames or None in frames:
                raise ReadError(ERROR_KIND, f"{location}: {name} lists frames, and one is missing; give a URI for each")
            return MediaRef(tuple(frame for frame in frames if frame is not None), kind, wish)
        source = parse_source(value, base_folder, ERROR_KIND, f"{location}: {name}")
        if source is not None:
            return MediaRef(source, kind, wish)
    following = next(unused_media, None)
    if following is None:
        raise ReadError(ERROR_KIND, f"{location} has no source and the media columns hold no more; give {kind}: URI")
    return replace(following, kind=kind, options=wish)
