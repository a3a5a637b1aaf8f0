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

STARTS = 64  # brackets in prose that are looked at
BRACKET = re.compile(r"[{\[]")
FENCE = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
STRING = r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' """
COMMA = re.compile(rf"({STRING}) | ,(?=\s*[\]}}])", re.DOTALL | re.VERBOSE)
WORD = re.compile(rf"({STRING}) | \b(true|false|null)\b", re.DOTALL | re.VERBOSE)
TEXT = re.compile(STRING, re.DOTALL | re.VERBOSE)
PYTHON = {"true": "True", "false": "False", "null": "None"}
SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str) -> tuple[Any, bool]:
    """The value, and False where the text was that value and nothing else."""
    try:
        value = loads(text)
        return encodable(value) if SURROGATE.search(text) or "\\ud" in text.lower() else (value, False)
    except (ValueError, RecursionError):
        pass
    fenced = [value for inside in FENCE.findall(text) for value in _values(inside)]
    found = fenced or _values(text)  # the fence may stand inside a string
    if len(found) != 1:
        what = "no JSON" if not found else f"{len(found)} JSON values where one was asked for"
        raise AnswerError("not_json", f"the answer holds {what}", text=text)
    return encodable(found[0])[0], True


def _values(text: str) -> list[Any]:
    """The objects and arrays in a text, outermost ones only."""
    found: list[Any] = []
    at = 0
    for _ in range(STARTS):
        start = BRACKET.search(text, at)
        if start is None:
            break
        end = _end(text, start.start())
        read = [] if end is None else _read(text[start.start() : end])
        found += read
        at = end if end is not None and read else start.end()
    return found


def _end(text: str, start: int) -> int | None:
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


def _read(text: str) -> list[Any]:
    """A list with the value, or an empty one."""
    plain = COMMA.sub(lambda match: match[1] or "", text)
    for attempt in (text, plain):
        try:
            return [loads(attempt, strict=False)]
        except (ValueError, RecursionError):
            continue
    if re.search(r"\0\s*\0", TEXT.sub("\0", plain)):  # Python would make one text of two
        return []
    try:  # single quotes, True, None: a Python literal
        value = ast.literal_eval(WORD.sub(lambda match: match[1] or PYTHON[match[2]], plain))
        return [json.loads(json.dumps(value, allow_nan=False))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is not JSON")


loads = functools.partial(json.loads, parse_constant=_finite, parse_float=_finite)


def encodable(value: Any) -> tuple[Any, bool]:
    """Half of a surrogate pair is no character: it cannot be written to a file."""
    text = json.dumps(value, ensure_ascii=False)
    clean = SURROGATE.sub("\ufffd", text)
    return (json.loads(clean), True) if clean != text else (value, False)
