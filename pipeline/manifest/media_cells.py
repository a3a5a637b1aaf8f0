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
from pipeline.types import Ask, Medium

SETTINGS: dict[str, type[int] | type[float]] = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_width", "resized_height"), int),
    **dict.fromkeys(("nframes", "min_frames", "max_frames", "max_new_tokens"), int),
    **dict.fromkeys(("fps", "video_start", "video_end"), float),
}
ASK = {"nframes": "frames"}  # where Ask has a name of its own
FROM_ZERO = {"video_start", "video_end"}
ABSOLUTE = re.compile(r"/|data:|[A-Za-z][A-Za-z0-9+.-]*:[/:]", re.IGNORECASE)  # as pipeline.fetch.access tells schemes
LARGEST = 2**53


def media_of(value: Any, base: str, kind: str, where: str) -> list[Medium]:
    """The media in one cell: none, one, or a list of them, also as JSON text."""
    value = opened(value)
    cells = value if isinstance(value, (list, tuple)) else [value]
    sources = [source_of(cell, base, kind, where) for cell in cells]
    return [Medium(source) for source in sources if source is not None]


def opened(value: Any) -> Any:
    """What JSON text of a list or an object says; a path that begins like one is a path."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def source_of(value: Any, base: str, kind: str, where: str) -> str | bytes | None:
    """A URI, bytes, or a struct of either, as Hugging Face's datasets and chat messages write them."""
    if value is None or value in ("", b""):
        return None
    if isinstance(value, str):
        return resolved(text_of(value, kind, where), base)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.keys() & {"bytes", "path", "url"}:
        inner = [value[name] for name in ("bytes", "path", "url") if value.get(name)]
        if not inner:
            return None
        if isinstance(inner[0], (str, bytes)):
            return source_of(inner[0], base, kind, where)
    raise ReadError(kind, f"{where} holds {named(value)}; give a URI, bytes, or a struct with bytes or path")


def resolved(uri: str, base: str) -> str:
    """A relative path lies beside the manifest.

    >>> resolved("a/b.png", "s3://bucket/in/"), resolved("/a.png", "/in"), resolved("data:,x", "/in")
    ('s3://bucket/in/a/b.png', '/a.png', 'data:,x')
    """
    if not base or ABSOLUTE.match(uri):
        return uri
    return f"{base.rstrip('/')}/{uri}"


def ask_of(values: Mapping[str, Any], kind: str, where: str) -> Ask:
    """The settings among some values, by the names that manifests use."""
    given = {name: number(name, values[name], SETTINGS[name], kind, where) for name in SETTINGS if name in values}
    return Ask(**{ASK.get(name, name): value for name, value in given.items() if value is not None})


def number(name: str, value: Any, wanted: type[int] | type[float], kind: str, where: str) -> Any:
    """A setting's number, or a text of it. NaN is what tables write for an empty cell of a column of numbers."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    if not fits or (wanted is int and value != int(value)):
        what = "whole number" if wanted is int else "number"
        raise ReadError(kind, f"{where}{name} holds {named(value)}; give a {what} or leave it empty")
    if value < 0 or (value == 0 and name not in FROM_ZERO):
        least = "zero or more" if name in FROM_ZERO else "more than zero"
        raise ReadError(kind, f"{where}{name} is {value}; it must be {least}")
    return wanted(value)


def text_of(value: str, kind: str, where: str) -> str:
    """Text that can be encoded: JSON can spell half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ReadError(
            kind, f"{where} holds half of a surrogate pair at {error.start}; write whole characters"
        ) from error
    return value


def named(value: Any) -> str:
    """What a value is, for a message."""
    return f"{type(value).__name__} {reprlib.repr(value)[:60]}"
