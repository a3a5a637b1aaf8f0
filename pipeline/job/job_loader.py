"""Reads a job file into a frozen Job. Errors name the file, the line and the key.

`--set` changes go over the file, and variables are filled in before the values are checked. All problems are reported
together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import JobError
from pipeline.job.keys import KeyPath, find_fields, format_key, is_secret_key, is_text_key
from pipeline.job.spec import Job
from pipeline.job.variables import Problem, fill_variables, find_credentials, resolve_date
from pipeline.registry import format_suggestion

TYPE_ERROR_MESSAGES = {"int": "must be a whole number", "float": "must be a number", "bool": "must be true or false"}
TYPE_ERROR_MESSAGES |= {"string": "must be text", "model": "must be a section with keys of its own"}
TYPE_ERROR_MESSAGES |= {"tuple": "must be one value or a list of them"}
FREE_KEY_PREFIX = "x-"  # such keys at the top of a job hold YAML anchors; they are not part of the job
AMBIGUOUS_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
YAML_NULLS = ("", "~", "null")
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load_job(
    path: str | Path,
    *,
    changes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    date: str | None = None,
) -> Job:
    """`changes` are those of `--set`, as `a.b=c`. `date` is the day that variables stand for, today by default."""
    return parse_job(read_job_text(path), source_name=str(path), changes=changes, environment=environment, date=date)


def read_job_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        siblings = {str(sibling): None for sibling in Path(path).parent.glob("*.y*ml")}
        raise JobError(f"{path}: there is no such file{format_suggestion(str(path), siblings)}") from error
    except IsADirectoryError as error:
        raise JobError(f"{path}: is a folder, and this command takes a job file") from error
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
    node, given = parse_yaml(text, source_name)
    positions = {path: f"{source_name}:{line}" for path, line in find_key_lines(node)}
    lines = [f"{source_name}:{line}: {format_key(path)}: is given twice" for path, line in find_repeated_keys(node)]
    lines += [f"{source_name}:{problem}" for problem in find_ambiguous_numbers(node)]
    for change in changes:
        path = set_key(given, change)
        positions |= {path[:end]: "--set" for end in range(1, len(path)) if path[:end] not in positions}
        positions[path] = "--set"
    given = {key: value for key, value in given.items() if value is not None}  # a section with all keys commented out
    environment = os.environ if environment is None else environment
    problems: list[Problem] = []
    values = fill_variables(given, environment, resolve_date(date, environment), problems)
    credentials = list(find_credentials(given, values))
    problems += credentials
    job = None
    if not credentials:  # validation errors repeat values
        try:
            job = Job.model_validate(drop_free_keys(values))
        except ValidationError as error:
            problems += [(details["loc"], describe_error(details)) for details in error.errors()]
    lines += [f"{format_position(path, positions)}{format_key(path)}: {problem}" for path, problem in problems]
    if job is None or lines:
        raise JobError("\n".join([f"{source_name} is not a job that can run:", *(f"  {line}" for line in lines)]))
    return job


def parse_yaml(text: str, source_name: str) -> tuple[yaml.Node | None, dict[str, Any]]:
    """The tree of YAML nodes, which know their lines, and the values."""
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
    """The line of each key, counted from one."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*key_path, key.value), key.start_mark.line + 1
            yield from find_key_lines(value, (*key_path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key_path, index), value.start_mark.line + 1
            yield from find_key_lines(value, (*key_path, index))


def find_repeated_keys(node: yaml.Node | None, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Keys that are given twice in one mapping, with the later line. YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*key_path, key.value), key.start_mark.line + 1
            seen.add(key.value)
            yield from find_repeated_keys(value, (*key_path, key.value))


def find_ambiguous_numbers(node: yaml.Node | None) -> Iterator[str]:
    """YAML 1.1 reads 010 as octal and 1:30 as ninety. People mean something else."""
    if isinstance(node, yaml.ScalarNode) and node.tag in NUMBER_TAGS and AMBIGUOUS_NUMBER.fullmatch(node.value):
        meaning = yaml.safe_load(node.value)
        problem = f"{node.value} means {meaning} in YAML; write a plain number, or put text in quotes"
        yield f"{node.start_mark.line + 1}: {problem}"
    elif isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else [child]:
                yield from find_ambiguous_numbers(part)


def drop_free_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not str(key).startswith(FREE_KEY_PREFIX)}


def set_key(values: dict[str, Any], change: str) -> KeyPath:
    """Apply one `a.b=c` and return its key. The values of text keys are taken literally, all others are YAML."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {change}: write it as key.key=value, such as --set answer.max_new_tokens=64")
    path = *parents, last = tuple(key.strip().split("."))
    section = values
    for name in parents:
        if section.get(name) is None:
            section[name] = {}
        if not isinstance(section[name], dict):
            raise JobError(f"--set {change}: {name} is a value, it has no keys")
        section = section[name]
    is_literal = is_text_key(path) and text not in YAML_NULLS and text[0] not in "'\""
    if not is_literal and AMBIGUOUS_NUMBER.fullmatch(text):
        raise JobError(f"--set {change}: {text} means {yaml.safe_load(text)} in YAML; write a plain number")
    try:
        section[last] = text if is_literal else yaml.safe_load(text)
    except yaml.YAMLError:
        section[last] = text
    return path


def format_position(key_path: KeyPath, positions: Mapping[KeyPath, str]) -> str:
    """`job.yaml:12: ` for the key, or for the nearest parent that the file gives."""
    parents = (key_path[:end] for end in range(len(key_path), 0, -1))
    return next((f"{positions[parent]}: " for parent in parents if parent in positions), "")


def describe_error(error: ErrorDetails) -> str:
    kind, path, value = error["type"], error["loc"], error.get("input")
    if kind == "extra_forbidden":
        return f"there is no such key{format_suggestion(str(path[-1]), find_fields(path[:-1]))}"
    if kind == "missing":
        return "is needed and not given"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    if kind.endswith(("_parsing", "_type", "_from_float")):
        message = TYPE_ERROR_MESSAGES.get(kind.partition("_")[0], message)
        if isinstance(value, dict) and message in TYPE_ERROR_MESSAGES.values():
            message += '; put it in quotes, as in "{column}: what is it?"'
        elif kind == "string_type" and value is not None:
            message += f'; put it in quotes: "{value}"'
    if isinstance(value, (dict, list)) or is_secret_key(path) or 'in quotes: "' in message:
        return f"{message[:1].lower()}{message[1:]}"
    shown = " (given: nothing)" if value is None else f" (given: {value!r})"
    return f"{message[:1].lower()}{message[1:]}{shown}"
