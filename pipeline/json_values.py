"""Finds the one JSON value in a model's text, and repairs mistakes that cannot change its meaning.

Repaired are: text and code fences around the value, trailing commas, single quotes, Python's True, False and None,
and characters that strings must not hold. A truncated value is refused, because completing it would invent an answer.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from typing import Any

from pipeline.errors import AnswerError

MAX_BRACKETS_TRIED = 64  # brackets in prose may open no JSON
OPENING_BRACKET = re.compile(r"[{\[]")
CODE_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
QUOTED_STRING_REGEX = r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' """
TRAILING_COMMA = re.compile(rf"({QUOTED_STRING_REGEX}) | ,(?=\s*[\]}}])", re.DOTALL | re.VERBOSE)
JSON_LITERAL = re.compile(rf"({QUOTED_STRING_REGEX}) | \b(true|false|null)\b", re.DOTALL | re.VERBOSE)
QUOTED_STRING = re.compile(QUOTED_STRING_REGEX, re.DOTALL | re.VERBOSE)
PYTHON_LITERALS = {"true": "True", "false": "False", "null": "None"}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_answer(text: str) -> tuple[Any, bool]:
    """The value, and whether the text had to be repaired."""
    try:
        value = parse_json(text)
        return (
            replace_lone_surrogates(value) if LONE_SURROGATE.search(text) or "\\ud" in text.lower() else (value, False)
        )
    except (ValueError, RecursionError):
        pass
    fenced_values = [value for inside in CODE_FENCE.findall(text) for value in _find_json_values(inside)]
    values = fenced_values or _find_json_values(text)  # a fence may stand inside a string
    if len(values) != 1:
        content = f"{len(values)} JSON values instead of one" if values else "no JSON"
        raise AnswerError("not_json", f"the answer holds {content}", text=text)
    return replace_lone_surrogates(values[0])[0], True


def _find_json_values(text: str) -> list[Any]:
    """The outermost objects and arrays in a text."""
    values: list[Any] = []
    position = 0
    for _ in range(MAX_BRACKETS_TRIED):
        bracket = OPENING_BRACKET.search(text, position)
        if bracket is None:
            break
        end = _find_closing_bracket(text, bracket.start())
        parsed = [] if end is None else _parse_candidate(text[bracket.start() : end])
        values += parsed
        position = end if end is not None and parsed else bracket.end()
    return values


def _find_closing_bracket(text: str, start: int) -> int | None:
    """The position after the bracket that closes the one at `start`; None if there is none. Skips strings."""
    depth, quote, previous, position = 0, "", "", start
    while position < len(text):
        char = text[position]
        if quote:
            position += char == "\\"
            quote = "" if char == quote else quote
        elif char == '"' or (char == "'" and previous in "{[,:"):
            quote = char
        else:
            depth += (char in "{[") - (char in "}]")
            if depth == 0:
                return position + 1
        previous = previous if char.isspace() else char
        position += 1
    return None


def _parse_candidate(text: str) -> list[Any]:
    """A list that holds the value, or an empty one."""
    without_commas = TRAILING_COMMA.sub(lambda match: match[1] or "", text)
    for candidate in (text, without_commas):
        try:
            return [parse_json(candidate, strict=False)]
        except (ValueError, RecursionError):
            continue
    if re.search(r"\0\s*\0", QUOTED_STRING.sub("\0", without_commas)):  # Python would join the two strings
        return []
    try:  # single quotes, True, None: a Python literal
        value = ast.literal_eval(JSON_LITERAL.sub(lambda match: match[1] or PYTHON_LITERALS[match[2]], without_commas))
        return [json.loads(json.dumps(value, allow_nan=False))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _parse_finite_float(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is not JSON")


parse_json = functools.partial(json.loads, parse_constant=_parse_finite_float, parse_float=_parse_finite_float)


def replace_lone_surrogates(value: Any) -> tuple[Any, bool]:
    """Half of a surrogate pair cannot be encoded in a file. Returns whether anything was replaced."""
    text = json.dumps(value, ensure_ascii=False)
    clean = LONE_SURROGATE.sub("\ufffd", text)
    return (json.loads(clean), True) if clean != text else (value, False)


def parse_json_text(value: Any) -> Any:
    """Objects and lists may stand as JSON text in tables and in columns without a fixed shape."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
