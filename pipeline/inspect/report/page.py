"""What was gathered -> one HTML page that needs nothing beside it.

Everything that a model or a manifest said is text: escaped by the template, its control and bidirectional characters
made visible, and held inside `<bdi>`. The page's own policy lets nothing be fetched and no script run but the one
whose hash it names, so what would slip through could still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

MAX_TABLE_COLUMNS = 9  # of a table; wider lists are shown one by one
KEPT_CHARACTERS = "\n\t\u200c\u200d"  # line ends, and the joiners that scripts and emoji need


def render_page(content: Mapping[str, Any]) -> str:
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    room = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters |= {"plain": escape_control_characters, "keys": list_columns}
    room.tests["table"] = is_table
    template = room.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    hashes = {"style_hash": hash_source(style), "script_hash": hash_source(script)}
    return template.render(**content, **hashes, style=Markup(style), script=Markup(script))


def hash_source(text: str) -> str:
    """A source's hash as a content policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def escape_control_characters(value: Any) -> str:
    """Text without characters that change how their neighbours are shown.

    >>> plain("a\\u202eb\\x07\\n"), plain(1.5)
    ('a[U+202E]b[U+0007]\\n', '1.5')
    """
    if isinstance(value, Decimal):
        value = f"{value:.2f}" if value == round(value, 2) else f"{value.normalize():f}"
    return "".join(
        f"[U+{ord(letter):04X}]"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in KEPT_CHARACTERS
        else letter
        for letter in str(value)
    )


def is_table(value: Any) -> bool:
    """A list of objects that are narrow enough to be rows."""
    rows = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)
    return rows and 0 < len(list_columns(value)) <= MAX_TABLE_COLUMNS


def list_columns(rows: Any) -> list[str]:
    """The columns that some row fills, in order."""
    return list(dict.fromkeys(name for row in rows for name, cell in row.items() if cell is not None))
