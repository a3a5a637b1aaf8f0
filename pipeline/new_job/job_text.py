"""Changes keys in the text of a job and keeps everything else, comments included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def set_keys(text: str, values: Mapping[str, Any]) -> str:
    """Set keys such as `input.manifest`. A key that the text lacks is added at the end of its section."""
    for key, value in values.items():
        text = set_key(text, key.split("."), value)
    return text


def set_key(text: str, keys: Sequence[str], value: Any) -> str:
    section: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, key in enumerate(keys, 1):
        entries = {name.value: inner for name, inner in section.value}
        if key not in entries:
            return insert_key(text, section, keys[depth - 1 :], value)
        node = entries[key]
        if depth < len(keys):
            section = node
    value_text = format_value(value, in_flow=section.flow_style)
    return text[: node.start_mark.index] + value_text + text[find_end(text, node) :]


def insert_key(text: str, section: yaml.MappingNode, keys: Sequence[str], value: Any) -> str:
    """Add a key, with the sections that lead to it, after the last key of a section."""
    end = find_end(text, section.value[-1][1])
    if section.flow_style:
        inner = "".join(f"{key}: {{" for key in keys[:-1])
        value_text = format_value(value, in_flow=True)
        return f"{text[:end]}, {inner}{keys[-1]}: {value_text}{'}' * (len(keys) - 1)}{text[end:]}"
    line_end = text.index("\n", end) + 1  # after the line's comment
    indent = section.value[0][0].start_mark.column
    lines = [f"{' ' * (indent + 2 * depth)}{key}:" for depth, key in enumerate(keys)]
    return text[:line_end] + "\n".join(lines) + f" {format_value(value)}\n" + text[line_end:]


def remove_section(text: str, name: str) -> str:
    """The text without a section at its top."""
    job: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in job.value:
        if key.value == name:
            line_end = text.index("\n", find_end(text, value)) + 1
            return text[: key.start_mark.index] + text[line_end:]
    return text


def find_end(text: str, node: yaml.Node) -> int:
    """Where a value ends. For YAML a block ends only where the next key begins."""
    return len(text[: node.end_mark.index].rstrip())


def format_value(value: Any, *, in_flow: bool = False) -> str:
    """A value on one line: text without quotes where YAML reads it as the same text."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_value(inner, in_flow=True)}' for key, inner in value.items())}}}"
    if isinstance(value, str) and is_plain_text(value, in_flow=in_flow):
        return value
    return json.dumps(value, ensure_ascii=False)


def is_plain_text(text: str, *, in_flow: bool) -> bool:
    try:
        return bool(
            yaml.safe_load(f"[{text}]" if in_flow else f"key: {text}") == ([text] if in_flow else {"key": text})
        )
    except yaml.YAMLError:
        return False
