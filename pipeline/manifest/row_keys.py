"""The key of a row: its id and a hash of its question. Rows with equal keys are asked once.

A question is what the row's columns say. A relative path in them names another file in each folder, so rows with one
count the folder of their file, too, unless that is the folder that the manifest starts from: a manifest that moves with
its media asks the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fetch.access import is_remote
from pipeline.manifest.chat import ChatParser
from pipeline.manifest.media_cells import ABSOLUTE_URI, CellError, parse_media_cell
from pipeline.types import MediaOptions, MediaRef

encode_canonical_json = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


def hash_question(row: Mapping[str, Any], additions: Mapping[str, str]) -> str:
    """`row` has the columns that decide what is asked; `additions` is what is asked without being in them."""
    return hash_text(encode_canonical_json([row, additions] if additions else row)).hex()


def list_row_sources(
    row: Mapping[str, Any], media_columns: Sequence[str], messages_column: str | None, base_folder: str
) -> list[str]:
    """The URIs of a row's media, in order. None of a malformed row, which becomes an error row later."""
    try:
        cells = [parse_media_cell(row.get(name), base_folder, f"column {name}") for name in media_columns]
        parts: list[Any] = [media_ref for cell in cells for media_ref in cell]
        if messages_column is not None:
            parser = ChatParser(messages_column, repeat(MediaRef(b"")), MediaOptions(), base_folder)
            messages = parser.parse_messages(row.get(messages_column))
            parts += [part for message in messages for part in parser.parse_turn(message, messages_column).parts]
    except CellError:
        return []
    sources = [part.source for part in parts if isinstance(part, MediaRef)]
    uris = [uri for source in sources for uri in (source if isinstance(source, tuple) else [source])]
    return [uri for uri in uris if is_remote(uri)]


def has_relative_paths(uris: Sequence[str]) -> bool:
    return not all(map(ABSOLUTE_URI.match, uris))


def format_row_id(value: Any) -> str | None:
    """None for an empty cell. A column of whole numbers becomes floats in tables that write NaN for empty cells.

    >>> format_row_id(7), format_row_id(7.0), format_row_id(7.5), format_row_id(float("nan"))
    ('7', '7', '7.5', None)
    """
    if value is None or value != value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hash_to_hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def hash_row_keys(row_keys: Sequence[tuple[str, str]]) -> NDArray[np.uint64]:
    """Three hashes for each row: one of the id, and two halves of one of (id, question)."""
    digests = (hash_text(row_id)[:8] + hash_text(f"{row_id}\0{question}") for row_id, question in row_keys)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3)


def hash_rows(key_hashes: NDArray[np.uint64]) -> str:
    return hash_to_hex(key_hashes[:, 1:].tobytes())
