"""TODO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from pipeline.job.job_loader import find_sections


def format_reference(section: type[BaseModel], depth: int = 0) -> Iterator[str]:
    """Every key with its default and meaning, as `check --explain` prints it."""
    for name, field in section.model_fields.items():
        inner, words = find_sections(field.annotation), list_choices(field.annotation)
        default = (
            "needed" if field.is_required() else "" if inner else f"default {json.dumps(field.default, default=str)}"
        )
        suffix = f"  [{'; '.join(filter(None, [' | '.join(words), default]))}]" if words or default else ""
        yield f"{'  ' * depth}{field.alias or name}: {field.description}{suffix}"
        for each in inner:
            yield from format_reference(each, depth + 1)


def list_choices(annotation: Any) -> list[str]:
    """The words of which a key takes one."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for argument in get_args(annotation) for word in list_choices(argument)]
