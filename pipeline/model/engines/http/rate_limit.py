"""Spreads requests over time where an account is limited to so many requests or tokens a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from pipeline.model.engines.http.http_settings import HttpSettings


class Pace:
    """Hands out times at which amounts may be spent, so many units a minute and no burst.

    >>> pace = Pace(per_minute=60)
    >>> [pace.reserve(amount, now=100.0) for amount in (1, 3, 1)]
    [0.0, 1.0, 4.0]
    >>> pace.correct(-3)  # less was spent than reserved
    >>> pace.reserve(1, now=100.0)
    2.0
    """

    def __init__(self, per_minute: float):
        self.unit_s = 60 / per_minute
        self.free_at = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Seconds to wait before the amount is spent."""
        starts_at = max(now, self.free_at)
        self.free_at = starts_at + amount * self.unit_s
        return starts_at - now

    def correct(self, amount: float) -> None:
        self.free_at += amount * self.unit_s


class RateLimit:
    """Of one replica. The tokens of an answer are known afterwards, so its whole budget is reserved until then."""

    def __init__(self, settings: HttpSettings):
        self.requests = Pace(settings.requests_per_minute) if settings.requests_per_minute else None
        self.tokens = Pace(settings.tokens_per_minute) if settings.tokens_per_minute else None

    async def wait_for_turn(self, tokens: int) -> None:
        now = time.monotonic()
        waits = [pace.reserve(amount, now) for pace, amount in ((self.requests, 1), (self.tokens, tokens)) if pace]
        await asyncio.sleep(max(waits, default=0.0))

    def settle(self, tokens: int, response: Mapping[str, Any]) -> None:
        """Replace the reserved tokens by those that the server counted."""
        usage = response.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
        if self.tokens and isinstance(total, int):
            self.tokens.correct(total - tokens)
