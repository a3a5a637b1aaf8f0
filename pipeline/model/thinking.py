"""Separates what a Thinking model thinks from what it answers: `</think>` ends the thinking."""

from __future__ import annotations

THINK_START, THINK_END = "<think>", "</think>"


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thinking and the answer. The thinking is None where nothing ends it.

    >>> split_thinking("<think>hm</think> red"), split_thinking("red")
    (('hm', 'red'), (None, 'red'))
    """
    thinking, end, answer = text.rpartition(THINK_END)
    return (thinking.lstrip().removeprefix(THINK_START).strip(), answer.lstrip()) if end else (None, text)
