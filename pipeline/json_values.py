"""What a model wrote -> the JSON value in it, and whether it had to be repaired.

Only what cannot change a value's meaning is repaired: text and code fences around one JSON value, trailing
commas, single quotes, Python's True, False and None, and characters that strings may not hold. An answer that
was cut off is not completed: that would be making it up.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from typing import Any

from pipeline.errors import AnswerError

MAX_BRACKETS_TRIED = 64  # brackets in prose that are looked at
OPENING_BRACKET = re.compile(r"[{\[]")
CODE_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
QUOTED_STRING_REGEX = r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' """
TRAILING_COMMA = re.compile(rf"({QUOTED_STRING_REGEX}) | ,(?=\s*[\]}}])", re.DOTALL | re.VERBOSE)
JSON_LITERAL = re.compile(rf"({QUOTED_STRING_REGEX}) | \b(true|false|null)\b", re.DOTALL | re.VERBOSE)
QUOTED_STRING = re.compile(QUOTED_STRING_REGEX, re.DOTALL | re.VERBOSE)
PYTHON_LITERALS = {"true": "True", "false": "False", "null": "None"}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_answer(text: str) -> tuple[Any, bool]:
    """The value, and False where the text was that value and nothing else."""
    try:
        value = parse_json(text)
        return (
            replace_lone_surrogates(value) if LONE_SURROGATE.search(text) or "\\ud" in text.lower() else (value, False)
        )
    except (ValueError, RecursionError):
        pass
    fenced = [value for inside in CODE_FENCE.findall(text) for value in _find_json_values(inside)]
    found = fenced or _find_json_values(text)  # the fence may stand inside a string
    if len(found) != 1:
        what = "no JSON" if not found else f"{len(found)} JSON values where one was asked for"
        raise AnswerError("not_json", f"the answer holds {what}", text=text)
    return replace_lone_surrogates(found[0])[0], True


def _find_json_values(text: str) -> list[Any]:
    """The objects and arrays in a text, outermost ones only."""
    found: list[Any] = []
    at = 0
    for _ in range(MAX_BRACKETS_TRIED):
        start = OPENING_BRACKET.search(text, at)
        if start is None:
            break
        end = _find_closing_bracket(text, start.start())
        read = [] if end is None else _parse_candidate(text[start.start() : end])
        found += read
        at = end if end is not None and read else start.end()
    return found


def _find_closing_bracket(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed, strings not counted; None where it never is."""
    depth, quote, last, at = 0, "", "", start
    while at < len(text):
        char = text[at]
        if quote:
            at += char == "\\"
            quote = "" if char == quote else quote
        elif char == '"' or (char == "'" and last in "{[,:"):
            quote = char
        else:
            depth += (char in "{[") - (char in "}]")
            if depth == 0:
                return at + 1
        last = last if char.isspace() else char
        at += 1
    return None


def _parse_candidate(text: str) -> list[Any]:
    """A list with the value, or an empty one."""
    plain = TRAILING_COMMA.sub(lambda match: match[1] or "", text)
    for attempt in (text, plain):
        try:
            return [parse_json(attempt, strict=False)]
        except (ValueError, RecursionError):
            continue
    if re.search(r"\0\s*\0", QUOTED_STRING.sub("\0", plain)):  # Python would make one text of two
        return []
    try:  # single quotes, True, None: a Python literal
        value = ast.literal_eval(JSON_LITERAL.sub(lambda match: match[1] or PYTHON_LITERALS[match[2]], plain))
        return [json.loads(json.dumps(value, allow_nan=False))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _parse_finite_float(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is not JSON")


parse_json = functools.partial(json.loads, parse_constant=_parse_finite_float, parse_float=_parse_finite_float)


def replace_lone_surrogates(value: Any) -> tuple[Any, bool]:
    """Half of a surrogate pair is no character: it cannot be written to a file."""
    text = json.dumps(value, ensure_ascii=False)
    clean = LONE_SURROGATE.sub("\ufffd", text)
    return (json.loads(clean), True) if clean != text else (value, False)
