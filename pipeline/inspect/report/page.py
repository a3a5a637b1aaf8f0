"""Renders the report as one HTML page that needs no other file.

The page does not trust what a model or a manifest wrote. The template escapes it, makes control and bidirectional
characters visible, and keeps it inside `<bdi>`. The page's content security policy forbids all requests and every
script but the one whose hash it names, so even text that slipped through could do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import jinja2
from markupsafe import Markup

MAX_TABLE_COLUMNS = 9  # the elements of wider lists are shown one by one
KEPT_CHARACTERS = "\n\t\u200c\u200d"  # line ends, and the joiners that scripts and emoji need


def render_page(
    values: Mapping[str, Any], template_file: Traversable | None = None, script_file: Traversable | None = None
) -> str:
    """By the report's template and script, or by others in its style."""
    package = files(__package__)
    template_text = (template_file or package / "page.html.j2").read_text(encoding="utf-8")
    style = (package / "page.css").read_text(encoding="utf-8")
    script = (script_file or package / "page.js").read_text(encoding="utf-8")
    hashes = {"style_hash": hash_source(style), "script_hash": hash_source(script)}
    template = build_environment().from_string(template_text)
    return template.render(**values, **hashes, style=Markup(style), script=Markup(script))


def build_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"visible": escape_control_characters, "columns": list_columns}
    environment.tests["table"] = is_table
    return environment


def hash_source(text: str) -> str:
    """The hash by which a content security policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def escape_control_characters(value: Any) -> str:
    """Replace characters that change how other text is shown.

    >>> escape_control_characters("a\\u202eb\\x07\\n"), escape_control_characters(1.5)
    ('a[U+202E]b[U+0007]\\n', '1.5')
    """
    if isinstance(value, Decimal):
        value = f"{value:.2f}" if value == round(value, 2) else f"{value.normalize():f}"
    return "".join(
        f"[U+{ord(character):04X}]"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in KEPT_CHARACTERS
        else character
        for character in str(value)
    )


def is_table(value: Any) -> bool:
    """Whether a value is a list of objects with few enough fields for a table."""
    is_list_of_objects = isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value)
    return is_list_of_objects and 0 < len(list_columns(value)) <= MAX_TABLE_COLUMNS


def list_columns(rows: Any) -> list[str]:
    """The fields that have a value in any row, in order."""
    return list(dict.fromkeys(name for row in rows for name, cell in row.items() if cell is not None))
