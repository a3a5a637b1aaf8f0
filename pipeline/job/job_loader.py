"""YAML text, the environment and --set -> a frozen Job, or an error that names the file, the line and the key.

Read once, on the driver, before anything is started. What `${...}` may stand for is in `pipeline.job.variables`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from pipeline.errors import JobError
from pipeline.job.spec import EngineSettings, Job
from pipeline.job.variables import KeyPath, Problem, fill_variables, find_credentials, resolve_date
from pipeline.registry import ENGINES, format_suggestion, load_registered

TYPE_ERROR_MESSAGES = {"int": "must be a whole number", "float": "must be a number", "bool": "must be true or false"}
TYPE_ERROR_MESSAGES |= {"string": "must be text", "model": "must be a section with keys of its own"}
YAML_NULLS = ("", "~", "null")  # as YAML writes it


def load_job(
    path: str | Path,
    *,
    changes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    date: str | None = None,
) -> Job:
    """The job that a file describes, with `--set a.b=c` changes over it, for a day that is not today."""
    return parse_job(read_job_text(path), source_name=str(path), changes=changes, environment=environment, date=date)


def read_job_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = {str(each): None for each in Path(path).parent.glob("*.y*ml")}
        raise JobError(f"{path}: there is no such file{format_suggestion(str(path), beside)}") from error
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: is not UTF-8 text, so it is not a job file") from error


def parse_job(
    text: str,
    *,
    source_name: str = "job",
    changes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    date: str | None = None,
) -> Job:
    """The same from text; `name` stands for the file in messages."""
    node, given = parse_yaml(text, source_name)
    lines = {path: f"{source_name}:{line}" for path, line in find_key_lines(node)}
    for change in changes:
        path = set_key(given, change)
        lines |= {path[:end]: "--set" for end in range(1, len(path)) if path[:end] not in lines} | {path: "--set"}
    environment = os.environ if environment is None else environment
    problems = [
        f"{format_position(path, {path: f'{source_name}:{again}'})}{format_key(path)}: is given twice"
        for path, again in find_repeated_keys(node)
    ]
    found: list[Problem] = []
    given = {key: value for key, value in given.items() if value is not None}  # a section with all keys commented out
    values = fill_variables(given, environment, resolve_date(date, environment), found)
    secrets = list(find_credentials(given, values, is_secret_key))
    problems += [f"{format_position(at, lines)}{format_key(at)}: {text}" for at, text in [*found, *secrets]]
    try:
        if not secrets:  # what is wrong elsewhere is said with the value that was given
            job = Job.model_validate(values)
    except ValidationError as error:
        problems += [format_position(e["loc"], lines) + describe_error(e["loc"], e) for e in error.errors()]
    if problems:
        raise JobError("\n".join([f"{source_name} is not a job that can run:", *(f"  {line}" for line in problems)]))
    return job


def parse_yaml(text: str, source_name: str) -> tuple[yaml.Node | None, dict[str, Any]]:
    """A job file's keys with their places, and the same as values."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source_name}:{mark.line + 1}" if mark else source_name
        raise JobError(f"{where}: is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise JobError(f"{source_name}: holds no keys; a job needs at least name, input, model and output")
    return node, values


def find_key_lines(node: yaml.Node | None, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Where each key stands, counted from one."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*key_path, key.value), key.start_mark.line + 1
            yield from find_key_lines(value, (*key_path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key_path, index), value.start_mark.line + 1
            yield from find_key_lines(value, (*key_path, index))


def find_repeated_keys(node: yaml.Node | None, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Keys given twice in one mapping; YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*key_path, key.value), key.start_mark.line + 1
            seen.add(key.value)
            yield from find_repeated_keys(value, (*key_path, key.value))


def set_key(values: dict[str, Any], change: str) -> KeyPath:
    """Apply one `a.b=c`, and say which key it was. Text is taken as it is, all else read as YAML as in the file."""
    where, equals, text = change.partition("=")
    if not equals or not where.strip():
        raise JobError(f"--set {change}: write it as key.key=value, such as --set answer.max_new_tokens=64")
    path = *parents, last = tuple(where.strip().split("."))
    target = values
    for key in parents:
        if (inner := target.get(key)) is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise JobError(f"--set {change}: {key} is a value, it has no keys")
        target = inner
    try:
        target[last] = (
            text if is_text_key(path) and text not in YAML_NULLS and text[0] not in "'\"" else yaml.safe_load(text)
        )
    except yaml.YAMLError:
        target[last] = text
    return path


def format_position(key_path: KeyPath, lines: Mapping[KeyPath, str]) -> str:
    """`job.yaml:12: ` for the key or the nearest parent that is given."""
    return next((f"{lines[key_path[:end]]}: " for end in range(len(key_path), 0, -1) if key_path[:end] in lines), "")


def format_key(key_path: KeyPath) -> str:
    return ".".join(str(part) for part in key_path) or "job"


def describe_error(key_path: KeyPath, error: Any) -> str:
    """One validation error as a person would say it."""
    kind, text, given = error["type"], error["msg"], error.get("input")
    if kind == "extra_forbidden":
        known = find_fields(Job, key_path[:-1])
        return f"{format_key(key_path)}: there is no such key{format_suggestion(str(key_path[-1]), known)}"
    if kind == "missing":
        return f"{format_key(key_path)}: is needed and not given"
    shown = "" if isinstance(given, (dict, list)) or "key" in format_key(key_path) else f" (given: {given!r})"
    said = (
        TYPE_ERROR_MESSAGES.get(kind.partition("_")[0]) if kind.endswith(("_parsing", "_type", "_from_float")) else None
    )
    said = f'{said}; put it in quotes, as in "{{column}}: what is it?"' if isinstance(given, dict) and said else said
    said = said or text.removeprefix("Value error, ").replace("Input should be ", "must be ")
    return f"{format_key(key_path)}: {said[:1].lower() + said[1:]}{shown}"


def find_fields(model: Any, key_path: Sequence[str | int]) -> dict[str, Any]:
    """The keys that may stand at a place of the job file."""
    names = {f.alias or name: f for section in find_sections(model) for name, f in section.model_fields.items()}
    if not key_path:
        return names
    return find_fields(names[str(key_path[0])].annotation, key_path[1:]) if key_path[0] in names else {}


def is_secret_key(key_path: KeyPath) -> bool:
    """Whether a key holds what nobody should read in a job file."""
    return has_type(key_path, SecretStr)


def is_text_key(key_path: KeyPath) -> bool:
    """Whether a key holds text, in which a brace, a colon or ` #` is text, too."""
    return has_type(key_path, str)


def has_type(key_path: KeyPath, value_type: type) -> bool:
    field = find_fields(Job, key_path[:-1]).get(str(key_path[-1])) if key_path else None
    annotation = field.annotation if field else None
    return value_type in ((annotation, *get_args(annotation)) if get_origin(annotation) in (None, UnionType) else ())


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside an annotation; those of all engines for `engine`."""
    if annotation is EngineSettings:
        return [load_registered(ENGINES, kind, "engine.kind").Settings for kind in ENGINES]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) if get_origin(annotation) for inner in find_sections(argument)]
