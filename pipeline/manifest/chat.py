"""Parse a chat, as lists or as JSON text, into Turns. Parts may be written as Qwen or as OpenAI write them.

A part without a source takes the next medium of the row's media columns; every medium must be taken by some part.
Parquet gives each part the keys of all parts, so a key without a value means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pipeline.manifest.media_cells import CellError, check_text, describe_value, parse_options, parse_source
from pipeline.types import MediaOptions, MediaRef, Turn

ROLES = ("system", "user", "assistant")
PART_TYPES: dict[str, Literal["text", "image", "video"]] = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
SOURCE_KEYS = {kind: (kind, f"{kind}_url", "url", "path", "bytes") for kind in ("image", "video")}


class ChatParser:
    """Parses the chat of one row. A CellError names the column, the message and the part."""

    def __init__(self, column: str, column_media: Iterable[MediaRef], row_options: MediaOptions, base_folder: str):
        self.column, self.row_options, self.base_folder = column, row_options, base_folder
        self.unused_media = iter(column_media)

    def parse_turns(self, value: Any) -> tuple[Turn, ...]:
        turns = [
            self.parse_turn(message, f"column {self.column}, message {number}")
            for number, message in enumerate(self.parse_messages(value), 1)
        ]
        if turns[-1].role != "user":
            problem = f"ends with a message of the {turns[-1].role}; end it with the user's"
            raise CellError(f"column {self.column} {problem}")
        if unused_count := len(list(self.unused_media)):
            problem = f"the media columns hold {unused_count} more than the chat has parts for"
            raise CellError(f"column {self.column}: {problem}; add parts or drop them")
        return tuple(turns)

    def parse_messages(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise CellError(f"column {self.column} is not JSON text of a list of messages: {error}") from error
        if not isinstance(value, list) or not value:
            advice = "give a list of at least one {role, content}"
            raise CellError(f"column {self.column} holds {describe_value(value)}; {advice}")
        return value

    def parse_turn(self, message: Any, location: str) -> Turn:
        if not isinstance(message, dict):
            raise CellError(f"{location} is {describe_value(message)}; give {{role, content}}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise CellError(f"{location}: role is {describe_value(role)}; it must be one of {', '.join(ROLES)}")
        if isinstance(content, str):
            parts: list[str | MediaRef] = [check_text(content, location)]
        elif isinstance(content, list | None):
            parts = [
                self.parse_part(part, f"{location}, part {number}") for number, part in enumerate(content or (), 1)
            ]
        else:
            raise CellError(f"{location}: content is {describe_value(content)}; give text or a list of parts")
        if not any(parts):
            raise CellError(f"{location} has no content; give text or parts, or leave the message out")
        return Turn(role, tuple(parts))

    def parse_part(self, part: Any, location: str) -> str | MediaRef:
        if isinstance(part, str):
            return check_text(part, location)
        if not isinstance(part, dict):
            raise CellError(f"{location} is {describe_value(part)}; give an object with a type")
        part = {key: field for key, field in part.items() if field is not None}
        kind = parse_part_kind(part, location)
        if kind != "text":
            return self.parse_media_part(part, kind, location)
        if not isinstance(text := part.get("text"), str):
            raise CellError(f"{location}: text is {describe_value(text)}; give a string")
        return check_text(text, location)

    def parse_media_part(self, part: dict[str, Any], kind: Literal["image", "video"], location: str) -> MediaRef:
        """The part's own source, or the next of the media columns."""
        options = parse_options(part, f"{location}: ").with_defaults(self.row_options)
        for name in SOURCE_KEYS[kind]:
            value: Any = part.get(name)
            is_frame_list = kind == "video" and isinstance(value, list)
            cells = value if is_frame_list else [value]
            sources = [parse_source(cell, self.base_folder, f"{location}: {name}") for cell in cells]
            found = tuple(source for source in sources if source is not None)
            if is_frame_list and len(found) < max(1, len(sources)):
                raise CellError(f"{location}: {name} lists frames, and one is missing; give a URI for each")
            if found:
                return MediaRef(found if is_frame_list else found[0], kind, options)
        if media_ref := next(self.unused_media, None):
            return replace(media_ref, kind=kind, options=options)
        raise CellError(f"{location} has no source and the media columns hold no more; give {kind}: URI")


def parse_part_kind(part: dict[str, Any], location: str) -> Literal["text", "image", "video"]:
    """The type of a part, or without one the first key that names a type."""
    named = part["type"] if "type" in part else next((key for key in part if key in PART_TYPES), None)
    if isinstance(named, str) and named in PART_TYPES:
        return PART_TYPES[named]
    known = "text, image, video, image_url, video_url, input_image"
    raise CellError(f"{location}: type is {describe_value(part.get('type'))}; it must be one of {known}")
