"""Finds the tokens of an answer that its grammar forced, where another program followed the grammar and does not say.

A token is forced if its bytes are the only ones that may stand there. Our own engine takes such tokens without asking
the model; other engines let the model choose among the ways to spell them, and report how probable that choice was.
"""

from __future__ import annotations

from collections.abc import Iterable

from llguidance import LLMatcher


def find_forced_tokens(text: str, ends: Iterable[int], matcher: LLMatcher) -> list[bool]:
    """For tokens that end at these places of the text. The matcher, which moves, stands at the start of the answer and
    takes bytes. Where the text leaves the grammar, nothing more counts as forced."""
    forced, start, follows = list[bool](), 0, True
    for end in ends:
        piece = text[start:end].encode()
        start = end
        known = matcher.compute_ff_bytes() if piece and follows and not matcher.is_accepting() else b""
        follows = follows and matcher.consume_tokens(list(piece))
        forced.append(follows and bool(piece) and known.startswith(piece))
    return forced
