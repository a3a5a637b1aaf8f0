"""Decode sources that carry their own bytes: bytes of the manifest and `data:` URIs."""

from __future__ import annotations

import base64
import binascii
from typing import TypeGuard
from urllib.parse import unquote_to_bytes

from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source

WHITESPACE = bytes(range(33))
URL_SAFE_ALPHABET = bytes.maketrans(b"-_", b"+/")


def is_data_uri(source: str) -> bool:
    return source[:5].lower() == "data:"


def is_remote(source: str | bytes) -> TypeGuard[str]:
    """Whether a source must be fetched: it does not carry its bytes."""
    return isinstance(source, str) and not is_data_uri(source)


def decode_inline_source(source: str | bytes) -> bytes:
    return source if isinstance(source, bytes) else decode_data_uri(source)


def decode_data_uri(uri: str) -> bytes:
    """Accepts missing padding, the URL-safe alphabet and white space.

    >>> decode_data_uri("data:image/png;base64,iVBO Rw"), decode_data_uri("data:,a%20b")
    (b'\\x89PNG', b'a b')
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise FetchError("data_uri", f"{redact_source(uri)}: no comma after the type")
    data = unquote_to_bytes(payload)
    if not header.lower().rstrip().endswith(";base64"):
        return data
    letters = data.translate(URL_SAFE_ALPHABET, WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise FetchError("data_uri", f"{redact_source(uri)}: not base64: {error}") from error
