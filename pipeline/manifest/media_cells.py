"""A value as manifests write media and their settings -> Medium, Ask. Nothing is opened."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.errors import ReadError
from pipeline.types import MediaOptions, MediaRef

OPTION_TYPES: dict[str, type[int] | type[float]] = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_width", "resized_height"), int),
    **dict.fromkeys(("nframes", "min_frames", "max_frames", "max_new_tokens"), int),
    **dict.fromkeys(("fps", "video_start", "video_end"), float),
}
FIELD_BY_OPTION = {"nframes": "frames"}  # where Ask has a name of its own
ZERO_ALLOWED = {"video_start", "video_end"}
ABSOLUTE_URI = re.compile(
    r"/|data:|[A-Za-z][A-Za-z0-9+.-]*:[/:]", re.IGNORECASE
)  # as pipeline.fetch.access tells schemes
MAX_OPTION_VALUE = 2**53


def parse_media_cell(value: Any, base_folder: str, error_kind: str, location: str) -> list[MediaRef]:
    """The media in one cell: none, one, or a list of them, also as JSON text."""
    value = parse_json_text(value)
    cells = value if isinstance(value, (list, tuple)) else [value]
    sources = [parse_source(cell, base_folder, error_kind, location) for cell in cells]
    return [MediaRef(source) for source in sources if source is not None]


def parse_json_text(value: Any) -> Any:
    """What JSON text of a list or an object says; a path that begins like one is a path."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def parse_source(value: Any, base_folder: str, error_kind: str, location: str) -> str | bytes | None:
    """A URI, bytes, or a struct of either, as Hugging Face's datasets and chat messages write them."""
    if value is None or value in ("", b""):
        return None
    if isinstance(value, str):
        return resolve_uri(check_text(value, error_kind, location), base_folder)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.keys() & {"bytes", "path", "url"}:
        inner = [value[name] for name in ("bytes", "path", "url") if value.get(name)]
        if not inner:
            return None
        if isinstance(inner[0], (str, bytes)):
            return parse_source(inner[0], base_folder, error_kind, location)
    raise ReadError(
        error_kind, f"{location} holds {describe_value(value)}; give a URI, bytes, or a struct with bytes or path"
    )


def resolve_uri(uri: str, base_folder: str) -> str:
    """A relative path lies beside the manifest.

    >>> resolved("a/b.png", "s3://bucket/in/"), resolved("/a.png", "/in"), resolved("data:,x", "/in")
    ('s3://bucket/in/a/b.png', '/a.png', 'data:,x')
    """
    if not base_folder or ABSOLUTE_URI.match(uri):
        return uri
    return f"{base_folder.rstrip('/')}/{uri}"


def parse_options(values: Mapping[str, Any], error_kind: str, location: str) -> MediaOptions:
    """The settings among some values, by the names that manifests use."""
    given = {
        name: parse_number(name, values[name], OPTION_TYPES[name], error_kind, location)
        for name in OPTION_TYPES
        if name in values
    }
    return MediaOptions(
        **{FIELD_BY_OPTION.get(name, name): value for name, value in given.items() if value is not None}
    )


def parse_number(name: str, value: Any, number_type: type[int] | type[float], error_kind: str, location: str) -> Any:
    """A setting's number, or a text of it. NaN is what tables write for an empty cell of a column of numbers."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_OPTION_VALUE
    if not fits or (number_type is int and value != int(value)):
        what = "whole number" if number_type is int else "number"
        raise ReadError(error_kind, f"{location}{name} holds {describe_value(value)}; give a {what} or leave it empty")
    if value < 0 or (value == 0 and name not in ZERO_ALLOWED):
        least = "zero or more" if name in ZERO_ALLOWED else "more than zero"
        raise ReadError(error_kind, f"{location}{name} is {value}; it must be {least}")
    return number_type(value)


def check_text(value: str, error_kind: str, location: str) -> str:
    """Text that can be encoded: JSON can spell half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ReadError(
            error_kind, f"{location} holds half of a surrogate pair at {error.start}; write whole characters"
        ) from error
    return value


def describe_value(value: Any) -> str:
    """What a value is, for a message."""
    return f"{type(value).__name__} {reprlib.repr(value)[:60]}"
