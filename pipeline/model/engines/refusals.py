"""Turns the refusals of servers and libraries into error rows."""

from __future__ import annotations

import re

MAX_MESSAGE_LENGTH = 300
TOO_LONG_MESSAGE = re.compile(
    r"context.{0,8}(length|window)|maximum.{0,20}(length|tokens)|too (long|many tokens)", re.I
)


def classify_refusal(message: str) -> str:
    """The kind of a Failure."""
    return "too_long" if TOO_LONG_MESSAGE.search(message) else "refused"


def shorten_message(message: str, secret: str = "") -> str:
    """One line without the secret, which some servers send back. A message may hold every pixel of the request."""
    clean = " ".join((message.replace(secret, "***") if secret else message).split())
    return clean if len(clean) <= MAX_MESSAGE_LENGTH else f"{clean[:MAX_MESSAGE_LENGTH]}..."
