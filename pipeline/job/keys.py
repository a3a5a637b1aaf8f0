"""Walks the sections of a job: which keys may stand where, and what they hold."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pipeline.job.spec import EngineSettings, Job
from pipeline.registry import ENGINES, load_registered

KeyPath = tuple[str | int, ...]


def format_key(key_path: KeyPath) -> str:
    return ".".join(str(part) for part in key_path) or "job"


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside an annotation; for the key `engine` those of all engines."""
    if annotation is EngineSettings:
        return [load_registered(ENGINES, kind, "engine.kind").Settings for kind in ENGINES]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) if get_origin(annotation) for inner in find_sections(argument)]


def find_fields(key_path: KeyPath) -> dict[str, FieldInfo]:
    """The keys of the section at a path, by name; empty where there is no section."""
    sections: list[type[BaseModel]] = [Job]
    fields: dict[str, FieldInfo] = {}
    for part in (*(key for key in key_path if isinstance(key, str)), None):  # numbers are places in lists
        fields = {field.alias or name: field for section in sections for name, field in section.model_fields.items()}
        sections = find_sections(fields[part].annotation) if part in fields else []
    return fields


def is_secret_key(key_path: KeyPath) -> bool:
    """Whether the value must not stand in a job file."""
    return has_type(key_path, SecretStr)


def may_hold_secret(key_path: KeyPath) -> bool:
    """Whether the value may be a secret: beside secret keys, a server may take one in a key of its own."""
    return is_secret_key(key_path) or key_path[:2] == ("engine", "body")


def is_text_key(key_path: KeyPath) -> bool:
    """Whether the value is text, in which a brace, a colon or ` #` have no meaning."""
    return has_type(key_path, str)


def has_type(key_path: KeyPath, value_type: type) -> bool:
    field = find_fields(key_path[:-1]).get(str(key_path[-1])) if key_path else None
    annotation = field.annotation if field else None
    if get_origin(annotation) is UnionType:
        return value_type in get_args(annotation)
    return annotation is value_type


def affects_answers(field: FieldInfo) -> bool:
    """Whether a change of the key changes what a model would say."""
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or bool(extra.get("affects_answers", True))
