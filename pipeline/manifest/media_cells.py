"""Parse media and their options as manifests write them, into MediaRef and MediaOptions. Nothing is fetched."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.types import MediaOptions, MediaRef

OPTION_TYPES: dict[str, type[int] | type[float]] = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_width", "resized_height"), int),
    **dict.fromkeys(("nframes", "min_frames", "max_frames"), int),
    **dict.fromkeys(("fps", "video_start", "video_end"), float),
}
FIELD_BY_OPTION = {"nframes": "frames"}  # where MediaOptions uses another name
ZERO_ALLOWED = {"video_start", "video_end"}
ABSOLUTE_URI = re.compile(r"/|data:|[A-Za-z][A-Za-z0-9+.-]*:[/:]", re.I)  # agrees with fetch.access.parse_scheme
RELATIVE_STEP = re.compile(r"(\.\.?)/")
MAX_OPTION_VALUE = 2**53


class CellError(ValueError):
    """A cell is malformed. `build_item` makes a ReadError of it."""


def parse_media_cell(value: Any, base_folder: str, location: str) -> list[MediaRef | None]:
    """The media in one cell: one, or a list, which may be JSON text. None stands for a medium that is missing."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(ValueError, RecursionError):  # a path may begin with a bracket
            value = json.loads(value)
    cells = value if isinstance(value, (list, tuple)) else [value]
    sources = [parse_source(cell, base_folder, location) for cell in cells]
    return [None if source is None else MediaRef(source) for source in sources] or [None]


def parse_source(value: Any, base_folder: str, location: str) -> str | bytes | None:
    """A URI, bytes, or a struct with either, as Hugging Face datasets and chat messages write them."""
    if value is None or value in ("", b""):
        return None
    if isinstance(value, str):
        return resolve_uri(check_text(value, location), base_folder)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.keys() & {"bytes", "path", "url"}:
        source = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), None)
        if source is None or isinstance(source, (str, bytes)):
            return parse_source(source, base_folder, location)
    raise CellError(f"{location} holds {describe_value(value)}; give a URI, bytes, or a struct with bytes or path")


def resolve_uri(uri: str, base_folder: str) -> str:
    """Relative paths start at the folder of the manifest.

    >>> resolve_uri("a/b.png", "s3://bucket/in/"), resolve_uri("/a.png", "/in"), resolve_uri("../a.png", "s3://bucket/in")
    ('s3://bucket/in/a/b.png', '/a.png', 's3://bucket/a.png')
    """
    if not base_folder or ABSOLUTE_URI.match(uri):
        return uri
    folder = base_folder.rstrip("/")
    is_on_disk = "://" not in folder or folder.startswith("file:")  # where `..` may lead through a link
    while not is_on_disk and (step := RELATIVE_STEP.match(uri)):
        parent = folder.rpartition("/")[0] if step[1] == ".." else folder
        if parent.endswith("/"):  # it would lead out of the store
            break
        folder, uri = parent, uri[step.end() :]
    return f"{folder}/{uri}"


def parse_options(values: Mapping[str, Any], location: str) -> MediaOptions:
    numbers = {
        FIELD_BY_OPTION.get(name, name): parse_number(name, values[name], number_type, location)
        for name, number_type in OPTION_TYPES.items()
        if name in values
    }
    return MediaOptions(**{name: number for name, number in numbers.items() if number is not None})


def parse_number(name: str, value: Any, number_type: type[int] | type[float], location: str) -> Any:
    """Accepts a number as text. Tables write NaN for an empty cell of a column of numbers."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_OPTION_VALUE
    if not fits or (number_type is int and value != int(value)):
        noun = "whole number" if number_type is int else "number"
        raise CellError(f"{location}{name} holds {describe_value(value)}; give a {noun} or leave it empty")
    if value < 0 or (value == 0 and name not in ZERO_ALLOWED):
        minimum = "zero or more" if name in ZERO_ALLOWED else "more than zero"
        raise CellError(f"{location}{name} is {value}; it must be {minimum}")
    return number_type(value)


def check_text(value: str, location: str) -> str:
    """Refuse text that UTF-8 cannot encode: JSON can escape half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"holds half of a surrogate pair at {error.start}; write whole characters"
        raise CellError(f"{location} {problem}") from error
    return value


def describe_value(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)[:60]}"
