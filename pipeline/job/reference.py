"""Prints every key of a job with its default and meaning, as `check --explain` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from pipeline.job.keys import find_sections


def format_reference(section: type[BaseModel], depth: int = 0) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner_sections = find_sections(field.annotation)
        notes = [" | ".join(list_choices(field.annotation))]
        if field.is_required():
            notes.append("needed")
        elif not inner_sections:
            notes.append(f"default {json.dumps(field.default, default=str)}")
        shown = "; ".join(filter(None, notes))
        yield f"{'  ' * depth}{field.alias or name}: {field.description}{f'  [{shown}]' if shown else ''}"
        for inner_section in inner_sections:
            yield from format_reference(inner_section, depth + 1)


def list_choices(annotation: Any) -> list[str]:
    """The words that a key accepts, if it accepts only certain words."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for argument in get_args(annotation) for word in list_choices(argument)]
